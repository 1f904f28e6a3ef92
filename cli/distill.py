"""``distill``: a student learns from a teacher."""

import re
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from onnxslim_tk.measure.kinds import OutputKind
from onnxslim_tk.measure.validate import Progress
from onnxslim_tk.pipeline import teaching
from onnxslim_tk.plan.budget import Budget
from onnxslim_tk.plan.training import Training
from onnxslim_tk.report.outcome import Report

from .learning import Learning, Teaching, loss_function
from .options import Judging, Showing, check_targets
from .outcome import deliver
from .progress import Steps
from .supervise import Isolation, supervise
from .torchrun import is_first_process


def distill(
    teacher: Annotated[
        Path, typer.Argument(metavar="TEACHER", help="The model to learn from.", show_default=False)
    ],
    student: Annotated[
        Path, typer.Argument(metavar="STUDENT", help="The model that learns.", show_default=False)
    ],
    result: Annotated[
        Path, typer.Argument(metavar="OUT", help="Where the result goes.", show_default=False)
    ],
    judging: Judging,
    lessons: Teaching,
    learning: Learning,
    isolation: Isolation,
    showing: Showing,
    teachers: Annotated[
        list[Path] | None,
        typer.Option("--teacher", metavar="PATH", help="One more teacher; may be repeated."),
    ] = None,
    match: Annotated[
        list[str] | None,
        typer.Option(
            metavar="OUTPUT=[N:]OUTPUT",
            help="An output of STUDENT and the teacher's that it belongs to, of teacher number N.",
        ),
    ] = None,
) -> None:
    """Let STUDENT learn from TEACHER on samples and write it to OUT.

    The result is never worse than STUDENT was, on the samples for choosing. Labels aren't needed.
    """
    if judging.calibration is None:
        raise typer.BadParameter("samples to learn from are needed", param_hint="--data")
    every = [teacher, *(teachers or ())]
    targets = {"OUT": result, "--report": showing.report, "--checkpoint": learning.checkpoint}
    for source in (student, *every):
        check_targets(source, targets)
    training = lessons.added_to(learning.settings())
    pairs = _pairs(match or [], len(every))
    call = partial(
        _distill, every, student, result, judging, training, learning, pairs, lessons.loss
    )
    with Steps(showing.silent or not is_first_process()) as steps:
        found = supervise(call, student, isolation, steps, result)
    if found is not None:
        deliver(found[0], showing, found[1])


def _distill(
    teachers: list[Path],
    student: Path,
    result: Path,
    judging: Judging,
    training: Training,
    learning: Learning,
    pairs: list[dict[str, str]],
    loss: str | None,
    progress: Progress,
) -> tuple[Report, Mapping[str, OutputKind]] | None:
    options = judging.options(student, training.schedule.seed, progress)
    options = replace(options, budget=judging.budget(Budget()), jobs=learning.jobs)
    report = teaching.distill(
        teachers,
        student,
        result,
        options,
        training,
        pairs=pairs,
        function=None if loss is None else loss_function(loss),
        checkpoint=learning.checkpoint,
    )
    return None if report is None else (report, options.kinds)


def _pairs(texts: list[str], count: int) -> list[dict[str, str]]:
    """Outputs that belong together, for each of ``count`` teachers."""
    pairs: list[dict[str, str]] = [{} for _ in range(count)]
    for text in texts:
        mine, equals, theirs = text.partition("=")
        numbered = re.fullmatch(r"(\d+):(.+)", theirs)
        number, name = (int(numbered[1]), numbered[2]) if numbered else (1, theirs)
        if not (equals and mine and name) or not 1 <= number <= count:
            raise typer.BadParameter(
                f"must read OUTPUT=OUTPUT or OUTPUT=N:OUTPUT with N up to {count}, got {text!r}",
                param_hint="--match",
            )
        pairs[number - 1][mine] = name
    return pairs
