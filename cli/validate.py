"""``validate``: hold two models side by side."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from onnxslim_tk import pipeline
from onnxslim_tk.measure.kinds import OutputKind
from onnxslim_tk.measure.validate import Progress
from onnxslim_tk.plan.budget import Budget
from onnxslim_tk.report.outcome import Report

from .options import Judging, Seed, Showing, check_targets
from .outcome import deliver
from .progress import Steps
from .supervise import Isolation, supervise


def validate(
    original: Annotated[Path, typer.Argument(metavar="ORIGINAL", show_default=False)],
    result: Annotated[Path, typer.Argument(metavar="RESULT", show_default=False)],
    judging: Judging,
    isolation: Isolation,
    showing: Showing,
    seed: Seed = 0,
) -> None:
    """Compare RESULT with ORIGINAL on all the samples given; exit code 3 if it is too far off."""
    check_targets(original, {"--report": showing.report})
    check_targets(result, {"--report": showing.report})
    call = partial(_validate, original, result, judging, seed)
    with Steps(showing.silent) as steps:
        report, kinds = supervise(call, result, isolation, steps)
    deliver(report, showing, kinds)


def _validate(
    original: Path, result: Path, judging: Judging, seed: int, progress: Progress
) -> tuple[Report, Mapping[str, OutputKind]]:
    options = judging.options(original, seed, progress)
    options = replace(options, budget=judging.budget(Budget()))
    return pipeline.validate(original, result, options), options.kinds
