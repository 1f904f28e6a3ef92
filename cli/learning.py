"""The options of commands that train, and what they become."""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, fields
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from onnxslim_tk.pipeline.teaching import load_loss
from onnxslim_tk.plan.training import Training, read_training, with_settings

_LEARNING: Final = "Training"
_LOSSES: Final = "What is learnt"
_SETTINGS: Final = (
    *("steps", "epochs", "minutes", "batch", "rate", "warm_up", "weight_decay", "l1"),
    *("clip", "average", "every", "patience", "seed"),
)


class Hard(StrEnum):
    """Losses of labels."""

    CROSS_ENTROPY = "cross-entropy"
    MSE = "mse"
    BCE = "bce"
    CTC = "ctc"


class Match(StrEnum):
    """How layers of student and teacher are matched."""

    AUTO = "auto"
    NAME = "name"
    POSITION = "position"
    NONE = "none"


def _option(panel: str, *names: str, **settings: Any) -> Any:
    return typer.Option(*names, rich_help_panel=panel, **settings)


@dataclass(frozen=True, slots=True, kw_only=True)
class Learning:
    """How long and how fast to learn; what isn't given comes from the recipe."""

    training: Annotated[
        Path | None,
        _option(
            _LEARNING,
            "--recipe",
            metavar="FILE.yaml",
            help="Settings of training, losses and augmentations in a file.",
        ),
    ] = None
    steps: Annotated[
        int | None, _option(_LEARNING, min=1, help="Steps of the optimizer; 1000 by default.")
    ] = None
    epochs: Annotated[
        float | None, _option(_LEARNING, metavar="X", help="Passes over the samples instead.")
    ] = None
    minutes: Annotated[
        float | None,
        _option(_LEARNING, metavar="X", help="End after so long; then no two runs are alike."),
    ] = None
    batch: Annotated[int | None, _option(_LEARNING, min=1, help="Samples a step; 16.")] = None
    rate: Annotated[
        float | None, _option(_LEARNING, metavar="X", help="Highest learning rate; 3e-4.")
    ] = None
    warm_up: Annotated[
        float | None, _option(_LEARNING, metavar="X", help="Share in which the rate rises; 0.1.")
    ] = None
    weight_decay: Annotated[float | None, _option(_LEARNING, metavar="X", help="Of AdamW; 0.")] = (
        None
    )
    l1: Annotated[
        float | None,
        _option(_LEARNING, metavar="X", help="Times the rate, what weights lose a step; 0."),
    ] = None
    clip: Annotated[
        float | None, _option(_LEARNING, metavar="X", help="Largest norm of gradients; 1.")
    ] = None
    average: Annotated[
        float | None,
        _option(_LEARNING, "--ema", metavar="X", help="Running average of weights; 0.98."),
    ] = None
    every: Annotated[
        int | None, _option(_LEARNING, min=1, metavar="N", help="Steps between looks; 50.")
    ] = None
    patience: Annotated[
        int | None,
        _option(_LEARNING, min=1, metavar="N", help="Looks without a better one, then stop; 6."),
    ] = None
    checkpoint: Annotated[
        Path | None,
        _option(
            _LEARNING,
            metavar="FILE",
            help="Keep the state there at each look, and go on from it if it is there already.",
        ),
    ] = None
    jobs: Annotated[
        int,
        _option(_LEARNING, metavar="N", help="Threads, -1 for all; 1 repeats to the bit."),
    ] = 1
    seed: Annotated[
        int | None, _option(_LEARNING, min=0, help="Seed of every draw at random; 0.")
    ] = None

    def settings(self) -> Training:
        """The training of the recipe, with what the command line says."""
        if self.jobs == 0:
            raise typer.BadParameter("must be 1 or more, or -1", param_hint="--jobs")
        if self.checkpoint is not None and not self.checkpoint.parent.is_dir():
            raise typer.BadParameter(
                f"{self.checkpoint} is no place for a file", param_hint="--checkpoint"
            )
        found = Training() if self.training is None else read_training(self.training)
        given = {name: getattr(self, name) for name in _SETTINGS}
        given = {name: value for name, value in given.items() if value is not None}
        if "steps" in given and "epochs" in given:
            raise typer.BadParameter("say --steps or --epochs, not both", param_hint="--epochs")
        if "steps" in given:
            given["epochs"] = None
        return with_settings(found, given)


@dataclass(frozen=True, slots=True, kw_only=True)
class Teaching:
    """What of a teacher is learnt, and what it weighs."""

    soft: Annotated[
        float | None, _option(_LOSSES, metavar="X", help="Weight of the outputs; 1.")
    ] = None
    temperature: Annotated[
        float | None, _option(_LOSSES, "--temperature", "-T", metavar="X", help="Of outputs; 1.")
    ] = None
    alpha: Annotated[
        float | None,
        _option(_LOSSES, metavar="X", help="The teacher's share; below 1 labels have the rest."),
    ] = None
    hard: Annotated[Hard | None, _option(_LOSSES, help="The loss of labels; cross-entropy.")] = None
    logits: Annotated[
        float | None, _option(_LOSSES, metavar="X", help="Weight of scores' squared error; 0.")
    ] = None
    layers: Annotated[
        float | None, _option(_LOSSES, metavar="X", help="Weight of layers in between; 1.")
    ] = None
    match_layers: Annotated[
        Match | None, _option(_LOSSES, help="How these layers are matched; auto.")
    ] = None
    attention: Annotated[
        float | None, _option(_LOSSES, metavar="X", help="Weight of a transformer's attention; 0.")
    ] = None
    hidden: Annotated[
        float | None, _option(_LOSSES, metavar="X", help="Weight of its hidden states; 0.")
    ] = None
    loss: Annotated[
        str | None,
        _option(
            _LOSSES,
            metavar="module:function",
            help="A loss beside these, function(outputs, labels, taught); runs its module's code.",
        ),
    ] = None

    def added_to(self, training: Training) -> Training:
        """``training`` with the weights of the command line."""
        given = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        given["match"] = given.pop("match_layers")
        given.pop("loss")
        plain = {k: v.value if isinstance(v, StrEnum) else v for k, v in given.items()}
        return with_settings(training, {k: v for k, v in plain.items() if v is not None})


def loss_function(spec: str) -> Callable[..., Any]:
    """The user's loss, which may lie in the present folder."""
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    return load_loss(spec)
