"""``optimize``: compress, validate, write."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from onnxslim_tk import pipeline
from onnxslim_tk.measure.kinds import OutputKind
from onnxslim_tk.measure.validate import Progress
from onnxslim_tk.plan.recipe import Recipe
from onnxslim_tk.report.outcome import Report

from .effort import Effort
from .options import (
    Choices,
    InPlace,
    MaybeTarget,
    Showing,
    Source,
    check_targets,
    place_of_result,
)
from .outcome import deliver
from .progress import Steps
from .supervise import Isolation, supervise


def optimize(
    source: Source,
    choices: Choices,
    effort: Effort,
    isolation: Isolation,
    showing: Showing,
    result: MaybeTarget = None,
    in_place: InPlace = False,
) -> None:
    """Compress the model IN and write it to OUT, if it keeps the budget.

    Where nothing compressed does, OUT is the tidied model. Exit code 3 says that not even that
    keeps the budget.
    """
    effort.check()
    target = place_of_result(source, result, in_place)
    check_targets(source, {"OUT": target, "--report": showing.report}, in_place)
    call = partial(_optimize, source, target, choices.chosen(), choices, effort, in_place)
    with Steps(showing.silent) as steps:
        report, kinds = supervise(call, source, isolation, steps, target)
    deliver(report, showing, kinds)


def _optimize(
    source: Path,
    target: Path,
    recipe: Recipe,
    choices: Choices,
    effort: Effort,
    in_place: bool,
    progress: Progress,
) -> tuple[Report, Mapping[str, OutputKind]]:
    options = effort.spent_on(choices.options(source, choices.seed, progress))
    options = replace(options, in_place=in_place)
    return pipeline.optimize(source, target, recipe, options), options.kinds
