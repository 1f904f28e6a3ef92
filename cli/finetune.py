"""``finetune``: train a model on labels, in the form it is stored in."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated, Final

import typer

from onnxslim_tk.measure.kinds import OutputKind
from onnxslim_tk.measure.validate import Progress
from onnxslim_tk.pipeline import teaching
from onnxslim_tk.plan.budget import Budget
from onnxslim_tk.plan.cuts import Cuts
from onnxslim_tk.plan.training import HARD, Training
from onnxslim_tk.report.outcome import Report

from .learning import Learning, loss_function
from .options import InPlace, Judging, MaybeTarget, Showing, check_targets, place_of_result
from .outcome import deliver
from .progress import Steps
from .supervise import Isolation, supervise
from .torchrun import is_first_process

_ROUNDS: Final = 4


class Schedule(StrEnum):
    """When a model is cut."""

    ONE_SHOT = "one-shot"
    ITERATIVE = "iterative"


class Codes(StrEnum):
    """Whether shared weights keep their codes."""

    FIXED = "fixed"
    REASSIGNED = "reassigned"


@dataclass(frozen=True, slots=True)
class _Work:
    """What the worker is told."""

    source: Path
    target: Path
    judging: Judging
    training: Training
    learning: Learning
    loss: str
    cuts: Cuts
    codes: Codes
    in_place: bool


def finetune(
    source: Annotated[Path, typer.Argument(metavar="MODEL", help="The model.", show_default=False)],
    judging: Judging,
    learning: Learning,
    isolation: Isolation,
    showing: Showing,
    result: MaybeTarget = None,
    loss: Annotated[
        str,
        typer.Option(
            metavar="NAME|module:function",
            help="cross-entropy, mse, bce, ctc, or a function(outputs, labels, taught); naming one "
            "runs its module's code.",
        ),
    ] = "cross-entropy",
    schedule: Annotated[
        Schedule,
        typer.Option(help="Whether to cut once, before the training, or in rounds."),
    ] = Schedule.ONE_SHOT,
    rounds: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Rounds of cutting and training; 4 if iterative."),
    ] = None,
    sparsity: Annotated[
        float | None, typer.Option(metavar="X", help="Cut weights to this share of zeros.")
    ] = None,
    keep_channels: Annotated[
        float | None, typer.Option(metavar="X", help="Cut channels to this share.")
    ] = None,
    codes: Annotated[
        Codes,
        typer.Option(help="Whether places of shared weights keep their codes, or get others."),
    ] = Codes.FIXED,
    in_place: InPlace = False,
) -> None:
    """Train MODEL on labelled samples and write it to OUT.

    Zeros stay zero, shared values shared, integers integers. The result is never worse than MODEL
    was, on the samples for choosing.
    """
    if judging.calibration is None:
        raise typer.BadParameter("samples to learn from are needed", param_hint="--data")
    if loss not in HARD and ":" not in loss:
        raise typer.BadParameter(
            f"must be one of {', '.join(HARD)}, or module:function, got {loss!r}",
            param_hint="--loss",
        )
    target = place_of_result(source, result, in_place)
    targets = {"OUT": target, "--report": showing.report, "--checkpoint": learning.checkpoint}
    check_targets(source, targets, in_place)
    training = learning.settings()
    if rounds is not None and schedule is Schedule.ONE_SHOT:
        raise typer.BadParameter("needs --schedule iterative", param_hint="--rounds")
    iterative = schedule is Schedule.ITERATIVE
    # What pulls weights to zero comes before the choice of those that go.
    cuts = Cuts(
        sparsity,
        keep_channels,
        (rounds or _ROUNDS) if iterative else 1,
        first=not (training.schedule.l1 and sparsity),
    )
    work = _Work(source, target, judging, training, learning, loss, cuts, codes, in_place)
    call = partial(_finetune, work)
    with Steps(showing.silent or not is_first_process()) as steps:
        found = supervise(call, source, isolation, steps, target)
    if found is not None:
        deliver(found[0], showing, found[1])


def _finetune(work: _Work, progress: Progress) -> tuple[Report, Mapping[str, OutputKind]] | None:
    judging, learning = work.judging, work.learning
    options = judging.options(work.source, work.training.schedule.seed, progress)
    options = replace(
        options, budget=judging.budget(Budget()), jobs=learning.jobs, in_place=work.in_place
    )
    report = teaching.finetune(
        work.source,
        work.target,
        work.loss if work.loss in HARD else loss_function(work.loss),
        options,
        work.training,
        cuts=work.cuts,
        reassign=work.codes is Codes.REASSIGNED,
        checkpoint=learning.checkpoint,
    )
    return None if report is None else (report, options.kinds)
