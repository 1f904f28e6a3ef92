"""``validate``: hold two models side by side."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from onnxslim_tk import pipeline
from onnxslim_tk.plan.budget import Budget

from .options import Judging, Seed, Showing, check_targets
from .outcome import deliver
from .progress import Steps


def validate(
    original: Annotated[Path, typer.Argument(metavar="ORIGINAL", show_default=False)],
    result: Annotated[Path, typer.Argument(metavar="RESULT", show_default=False)],
    judging: Judging,
    showing: Showing,
    seed: Seed = 0,
) -> None:
    """Compare RESULT with ORIGINAL on all the samples given; exit code 3 if it is too far off."""
    check_targets(original, {"--report": showing.report})
    check_targets(result, {"--report": showing.report})
    with Steps(showing.silent) as steps:
        options = judging.options(original, seed, steps)
        options = replace(options, budget=judging.budget(Budget()))
        report = pipeline.validate(original, result, options)
    deliver(report, showing, options.kinds)
