"""What a training is told: how long, what counts in the loss, how samples are varied."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from math import isfinite
from pathlib import Path
from typing import Any, Final, Literal

from onnxslim_tk.errors import RecipeError, TrainingError
from onnxslim_tk.plan.augmentation import AUGMENTATIONS, Augmentation
from onnxslim_tk.plan.reading import read_text, read_yaml
from onnxslim_tk.plan.recipe import built
from onnxslim_tk.plan.schedule import Schedule

Hard = Literal["cross-entropy", "mse", "bce", "ctc"]
Match = Literal["auto", "name", "position", "none"]

HARD: Final[tuple[Hard, ...]] = ("cross-entropy", "mse", "bce", "ctc")
MATCHES: Final[tuple[Match, ...]] = ("auto", "name", "position", "none")
_WEIGHTS: Final = ("soft", "logits", "layers", "attention", "hidden")


@dataclass(frozen=True, slots=True)
class Losses:
    """What a student is to learn from its teacher, and what each part weighs.

    ``soft`` weighs the outputs, distributions at ``temperature`` (Hinton et al., 2015); ``logits``
    their squared error; ``layers`` what layers put out, matched by ``name``, by ``position``, or
    with ``auto`` by name where there are such layers; ``attention`` and ``hidden`` those of a
    transformer. Labels count by the loss ``hard`` once ``alpha``, the teacher's share, is below 1.
    Raises TrainingError for settings out of range.
    """

    soft: float = 1.0
    temperature: float = 1.0
    alpha: float = 1.0
    hard: Hard = "cross-entropy"
    logits: float = 0.0
    layers: float = 1.0
    match: Match = "auto"
    attention: float = 0.0
    hidden: float = 0.0

    def __post_init__(self) -> None:
        for name in _WEIGHTS:
            weight = getattr(self, name)
            if not (isfinite(weight) and weight >= 0):
                raise TrainingError(f"train: {name} must be 0 or more, got {weight}")
        if not (isfinite(self.temperature) and self.temperature > 0):
            raise TrainingError(f"train: temperature must be above 0, got {self.temperature}")
        if not 0 <= self.alpha <= 1:
            raise TrainingError(f"train: alpha must be in [0, 1], got {self.alpha}")
        for name, known in (("hard", HARD), ("match", MATCHES)):
            if getattr(self, name) not in known:
                raise TrainingError(
                    f"train: {name} must be one of {', '.join(known)}, got {getattr(self, name)!r}"
                )


@dataclass(frozen=True, slots=True)
class Training:
    """How a model is trained: ``schedule``, ``losses``, ``augment``."""

    schedule: Schedule = field(default_factory=Schedule)
    losses: Losses = field(default_factory=Losses)
    augment: tuple[Augmentation, ...] = ()


def read_training(path: Path) -> Training:
    """The training in the YAML file at ``path``; raises RecipeError for what doesn't fit."""
    try:
        text = read_text(path)
    except (OSError, ValueError) as error:
        raise RecipeError(f"training: {path.name} is no readable file") from error
    return training_of(read_yaml(text, path.name), f"training {path.name}")


def training_of(data: Any, who: str) -> Training:
    """A training from plain data: fields of Schedule, and ``losses`` and ``augment``."""
    if not isinstance(data, dict):
        raise RecipeError(f"{who}: must be a mapping, got {type(data).__name__}")
    rest = {key: value for key, value in data.items() if key not in ("losses", "augment")}
    known = {entry.name for entry in fields(Schedule)}
    for key in rest:
        if key not in known:
            listed = ", ".join(sorted({*known, "losses", "augment"}))
            raise RecipeError(f"{who}: there is no setting {key!r}; it has {listed}")
    return Training(
        built(Schedule, rest, who),
        built(Losses, data.get("losses") or {}, f"{who}: losses"),
        _augmentations(data.get("augment") or [], who),
    )


def with_settings(training: Training, settings: Mapping[str, Any]) -> Training:
    """``training`` with settings by name, of its schedule or its losses."""
    lengths = {entry.name for entry in fields(Schedule)}
    of_schedule = {name: value for name, value in settings.items() if name in lengths}
    of_losses = {name: value for name, value in settings.items() if name not in lengths}
    return replace(
        training,
        schedule=replace(training.schedule, **of_schedule),
        losses=replace(training.losses, **of_losses),
    )


def training_data(training: Training) -> dict[str, Any]:
    """A training as plain data, every setting written out."""
    return {
        **{entry.name: getattr(training.schedule, entry.name) for entry in fields(Schedule)},
        "losses": {entry.name: getattr(training.losses, entry.name) for entry in fields(Losses)},
        "augment": [
            {each.name: {f.name: getattr(each, f.name) for f in fields(each)}}  # type: ignore[arg-type]
            for each in training.augment
        ],
    }


def _augmentations(data: Any, who: str) -> tuple[Augmentation, ...]:
    if not isinstance(data, list):
        raise RecipeError(f"{who}: 'augment' must be a list of augmentations")
    found = []
    for entry in data:
        settings: Any = {}
        if isinstance(entry, dict) and len(entry) == 1:
            entry, settings = next(iter(entry.items()))
        kind = AUGMENTATIONS.get(entry) if isinstance(entry, str) else None
        if kind is None:
            known = ", ".join(sorted(AUGMENTATIONS))
            raise RecipeError(f"{who}: there is no augmentation {entry!r}; known: {known}")
        values = settings if isinstance(settings, dict) else {kind.main: settings}
        found.append(built(kind, values, f"{who}: {entry}"))
    return tuple(found)
