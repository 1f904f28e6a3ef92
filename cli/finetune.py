"""``finetune``: train a model on labels, in the form it is stored in."""

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
from onnxslim_tk.plan.training import HARD, Training
from onnxslim_tk.report.outcome import Report

from .learning import Learning, loss_function
from .options import InPlace, Judging, MaybeTarget, Showing, check_targets, place_of_result
from .outcome import deliver
from .progress import Steps
from .supervise import Isolation, supervise
from .torchrun import is_first_process


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
    call = partial(_finetune, source, target, judging, training, learning, loss, in_place)
    with Steps(showing.silent or not is_first_process()) as steps:
        found = supervise(call, source, isolation, steps, target)
    if found is not None:
        deliver(found[0], showing, found[1])


def _finetune(
    source: Path,
    target: Path,
    judging: Judging,
    training: Training,
    learning: Learning,
    loss: str,
    in_place: bool,
    progress: Progress,
) -> tuple[Report, Mapping[str, OutputKind]] | None:
    options = judging.options(source, learning.seed, progress)
    options = replace(
        options, budget=judging.budget(Budget()), jobs=learning.jobs, in_place=in_place
    )
    report = teaching.finetune(
        source,
        target,
        loss if loss in HARD else loss_function(loss),
        options,
        training,
        checkpoint=learning.checkpoint,
    )
    return None if report is None else (report, options.kinds)
