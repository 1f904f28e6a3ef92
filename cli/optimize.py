"""``optimize``: compress, validate, write."""

from onnxslim_tk import pipeline

from .options import Choices, Showing, Source, Target, check_targets
from .outcome import deliver
from .progress import Steps


def optimize(source: Source, result: Target, choices: Choices, showing: Showing) -> None:
    """Compress the model IN and write it to OUT, if it keeps the budget.

    Where nothing compressed does, OUT is the tidied model. Exit code 3 says that not even that
    keeps the budget.
    """
    check_targets(source, {"OUT": result, "--report": showing.report})
    recipe = choices.chosen()
    with Steps(showing.silent) as steps:
        options = choices.options(source, choices.seed, steps)
        report = pipeline.optimize(source, result, recipe, options)
    deliver(report, showing, options.kinds)
