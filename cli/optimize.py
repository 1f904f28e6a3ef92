"""``optimize``: compress, validate, write."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

from onnxslim_tk import pipeline
from onnxslim_tk.measure.kinds import OutputKind
from onnxslim_tk.measure.validate import Progress
from onnxslim_tk.plan.recipe import Recipe
from onnxslim_tk.report.outcome import Report

from .options import Choices, Showing, Source, Target, check_targets
from .outcome import deliver
from .progress import Steps
from .supervise import Isolation, supervise


def optimize(
    source: Source, result: Target, choices: Choices, isolation: Isolation, showing: Showing
) -> None:
    """Compress the model IN and write it to OUT, if it keeps the budget.

    Where nothing compressed does, OUT is the tidied model. Exit code 3 says that not even that
    keeps the budget.
    """
    check_targets(source, {"OUT": result, "--report": showing.report})
    call = partial(_optimize, source, result, choices.chosen(), choices)
    with Steps(showing.silent) as steps:
        report, kinds = supervise(call, source, isolation, steps, result)
    deliver(report, showing, kinds)


def _optimize(
    source: Path, result: Path, recipe: Recipe, choices: Choices, progress: Progress
) -> tuple[Report, Mapping[str, OutputKind]]:
    options = choices.options(source, choices.seed, progress)
    return pipeline.optimize(source, result, recipe, options), options.kinds
