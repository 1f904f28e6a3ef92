"""``apply``: carry a plan out."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from onnxslim_tk import pipeline
from onnxslim_tk.passes import PASSES
from onnxslim_tk.plan.plan import read_plan

from .console import warn
from .options import Judging, Showing, Source, Target, check_targets
from .outcome import deliver
from .progress import Steps

PlanFile = Annotated[
    Path, typer.Argument(metavar="PLAN.json", help="What to do.", show_default=False)
]


def apply(
    source: Source,
    plan: PlanFile,
    result: Target,
    judging: Judging,
    showing: Showing,
    force: Annotated[
        bool, typer.Option("--force", help="Write OUT even if the budget does not hold.")
    ] = False,
) -> None:
    """Do to IN what PLAN.json says and write the result to OUT, if it keeps the budget.

    Recipe and seed are the plan's; give the samples that the plan was made with.
    """
    check_targets(source, {"PLAN.json": plan, "OUT": result, "--report": showing.report})
    given = read_plan(plan, PASSES)
    with Steps(showing.silent) as progress:
        options = judging.options(source, given.seed, progress)
        options = replace(options, budget=judging.budget(given.recipe.budget))
        report = pipeline.apply(source, result, given, options, force)
    if not report.holds and not force:
        warn(f"{result} was not written; --force writes it nevertheless")
    deliver(report, showing, options.kinds)
