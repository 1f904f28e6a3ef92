"""``apply``: carry a plan out."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from onnxslim_tk import pipeline
from onnxslim_tk.measure.kinds import OutputKind
from onnxslim_tk.measure.validate import Progress
from onnxslim_tk.passes import PASSES
from onnxslim_tk.plan.plan import Plan, read_plan
from onnxslim_tk.report.outcome import Report

from .console import warn
from .options import Judging, Showing, Source, Target, check_targets
from .outcome import deliver
from .progress import Steps
from .supervise import Isolation, supervise

PlanFile = Annotated[
    Path, typer.Argument(metavar="PLAN.json", help="What to do.", show_default=False)
]


def apply(
    source: Source,
    plan: PlanFile,
    result: Target,
    judging: Judging,
    isolation: Isolation,
    showing: Showing,
    force: Annotated[
        bool, typer.Option("--force", help="Write OUT even if the budget does not hold.")
    ] = False,
) -> None:
    """Do to IN what PLAN.json says and write the result to OUT, if it keeps the budget.

    Recipe and seed are the plan's; give the samples that the plan was made with.
    """
    check_targets(source, {"PLAN.json": plan, "OUT": result, "--report": showing.report})
    call = partial(_apply, source, result, read_plan(plan, PASSES), judging, force)
    with Steps(showing.silent) as steps:
        report, kinds = supervise(call, source, isolation, steps, result)
    if not report.holds and not force:
        warn(f"{result} was not written; --force writes it nevertheless")
    deliver(report, showing, kinds)


def _apply(
    source: Path, result: Path, given: Plan, judging: Judging, force: bool, progress: Progress
) -> tuple[Report, Mapping[str, OutputKind]]:
    options = judging.options(source, given.seed, progress)
    options = replace(options, budget=judging.budget(given.recipe.budget))
    return pipeline.apply(source, result, given, options, force), options.kinds
