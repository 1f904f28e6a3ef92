"""``optimize``: compress, validate, write."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from onnxslim_tk import pipeline
from onnxslim_tk.measure.kinds import OutputKind
from onnxslim_tk.measure.validate import Progress
from onnxslim_tk.plan.recipe import Recipe
from onnxslim_tk.report.outcome import Report

from .options import Choices, MaybeTarget, Showing, Source, check_targets
from .outcome import deliver
from .progress import Steps
from .supervise import Isolation, supervise


def optimize(
    source: Source,
    choices: Choices,
    isolation: Isolation,
    showing: Showing,
    result: MaybeTarget = None,
    in_place: Annotated[
        bool,
        typer.Option("--in-place", help="Let the result take IN's place; OUT may be left out."),
    ] = False,
) -> None:
    """Compress the model IN and write it to OUT, if it keeps the budget.

    Where nothing compressed does, OUT is the tidied model. Exit code 3 says that not even that
    keeps the budget.
    """
    target = _target(source, result, in_place)
    check_targets(source, {"OUT": target, "--report": showing.report}, in_place)
    call = partial(_optimize, source, target, choices.chosen(), choices, in_place)
    with Steps(showing.silent) as steps:
        report, kinds = supervise(call, source, isolation, steps, target)
    deliver(report, showing, kinds)


def _optimize(
    source: Path,
    target: Path,
    recipe: Recipe,
    choices: Choices,
    in_place: bool,
    progress: Progress,
) -> tuple[Report, Mapping[str, OutputKind]]:
    options = replace(choices.options(source, choices.seed, progress), in_place=in_place)
    return pipeline.optimize(source, target, recipe, options), options.kinds


def _target(source: Path, result: Path | None, in_place: bool) -> Path:
    """Where the result goes; raises typer.BadParameter where that isn't said, or said twice."""
    if result is None and not in_place:
        raise typer.BadParameter("a name for the result is needed, or --in-place", param_hint="OUT")
    if result is not None and in_place and result.resolve() != source.resolve():
        raise typer.BadParameter(
            f"{result} is another file than {source}; leave it out", param_hint="--in-place"
        )
    return source if result is None else result
