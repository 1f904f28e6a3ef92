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
from .effort import Effort
from .options import (
    InPlace,
    Judging,
    MaybeTarget,
    Showing,
    Source,
    check_targets,
    place_of_result,
)
from .outcome import deliver
from .progress import Steps
from .supervise import Isolation, supervise

PlanFile = Annotated[
    Path, typer.Argument(metavar="PLAN.json", help="What to do.", show_default=False)
]


def apply(
    source: Source,
    plan: PlanFile,
    judging: Judging,
    effort: Effort,
    isolation: Isolation,
    showing: Showing,
    result: MaybeTarget = None,
    in_place: InPlace = False,
    force: Annotated[
        bool, typer.Option("--force", help="Write OUT even if the budget does not hold.")
    ] = False,
) -> None:
    """Do to IN what PLAN.json says and write the result to OUT, if it keeps the budget.

    Recipe and seed are the plan's; give the samples that the plan was made with.
    """
    effort.check()
    target = place_of_result(source, result, in_place)
    targets = {"PLAN.json": plan, "OUT": target, "--report": showing.report}
    check_targets(source, targets, in_place)
    given = read_plan(plan, PASSES)
    call = partial(_apply, source, target, given, judging, effort, in_place, force)
    with Steps(showing.silent) as steps:
        report, kinds = supervise(call, source, isolation, steps, target)
    if not report.holds and not force:
        warn(f"{target} was not written; --force writes it nevertheless")
    deliver(report, showing, kinds)


def _apply(
    source: Path,
    target: Path,
    given: Plan,
    judging: Judging,
    effort: Effort,
    in_place: bool,
    force: bool,
    progress: Progress,
) -> tuple[Report, Mapping[str, OutputKind]]:
    options = effort.spent_on(judging.options(source, given.seed, progress))
    budget = judging.budget(given.recipe.budget)
    options = replace(options, budget=budget, in_place=in_place)
    return pipeline.apply(source, target, given, options, force), options.kinds
