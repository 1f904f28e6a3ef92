"""``student``: cut a smaller model out of one, to be taught by it."""

from collections.abc import Mapping
from dataclasses import replace
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from onnxslim_tk.measure.kinds import OutputKind
from onnxslim_tk.measure.validate import Progress
from onnxslim_tk.pipeline.student import Cut
from onnxslim_tk.pipeline.student import student as cut_student
from onnxslim_tk.plan.budget import Budget
from onnxslim_tk.report.outcome import Report

from .options import Judging, Seed, Showing, Source, check_targets
from .outcome import deliver
from .progress import Steps
from .supervise import Isolation, supervise


class Init(StrEnum):
    """Which weights a student begins with."""

    KEEP = "keep"
    RANDOM = "random"


def student(
    source: Source,
    result: Annotated[
        Path, typer.Argument(metavar="OUT", help="Where the student goes.", show_default=False)
    ],
    judging: Judging,
    isolation: Isolation,
    showing: Showing,
    width: Annotated[float, typer.Option(metavar="X", help="Share of channels that stay.")] = 0.5,
    depth: Annotated[float, typer.Option(metavar="X", help="Share of blocks that stay.")] = 1.0,
    init: Annotated[
        Init, typer.Option(help="The weights to begin with: the teacher's, or drawn anew.")
    ] = Init.KEEP,
    seed: Seed = 0,
) -> None:
    """Cut a student out of IN and write it to OUT, for distill to teach.

    With samples the layers that stay are refitted.
    """
    check_targets(source, {"OUT": result, "--report": showing.report})
    how = Cut(width, depth, init.value)
    call = partial(_student, source, result, judging, how, seed)
    with Steps(showing.silent) as steps:
        report, kinds = supervise(call, source, isolation, steps, result)
    deliver(report, showing, kinds)


def _student(
    source: Path,
    result: Path,
    judging: Judging,
    how: Cut,
    seed: int,
    progress: Progress,
) -> tuple[Report, Mapping[str, OutputKind]]:
    options = judging.options(source, seed, progress)
    options = replace(options, budget=judging.budget(Budget()))
    return cut_student(source, result, how, options), options.kinds
