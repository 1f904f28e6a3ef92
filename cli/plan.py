"""``plan``: choose only, and write down what would be done."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from onnxslim_tk import pipeline
from onnxslim_tk.measure.validate import Progress
from onnxslim_tk.plan.plan import Plan, plan_data, write_plan
from onnxslim_tk.plan.recipe import Recipe
from onnxslim_tk.report.as_json import json_text
from onnxslim_tk.report.summary import refusals

from .console import say
from .effort import Effort
from .options import Choices, Source, check_targets
from .progress import Steps
from .supervise import Isolation, supervise
from .tables import plan_table, refusal_tables, show

Place = Annotated[
    Path,
    typer.Argument(metavar="PLAN.json", help="Where the plan goes.", show_default=False),
]


def plan(
    source: Source,
    target: Place,
    choices: Choices,
    effort: Effort,
    isolation: Isolation,
    json: Annotated[bool, typer.Option("--json", help="Print the plan too, as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print warnings and errors only.")] = False,
) -> None:
    """Choose what optimize would do to IN and write it to PLAN.json, to read and edit."""
    effort.check()
    check_targets(source, {"PLAN.json": target})
    call = partial(_plan, source, choices.chosen(), choices, effort)
    with Steps(json or quiet) as steps:
        made = supervise(call, source, isolation, steps)
    write_plan(made, target)
    if json:
        typer.echo(json_text(plan_data(made)), nl=False)
    elif not quiet:
        show([plan_table(made), *refusal_tables(refusals(made))])
        say("edit the plan if you like; 'onnxslim apply' with the same samples carries it out")


def _plan(
    source: Path, recipe: Recipe, choices: Choices, effort: Effort, progress: Progress
) -> Plan:
    options = effort.spent_on(choices.options(source, choices.seed, progress))
    return pipeline.plan(source, recipe, options)
