"""How long and how fast to learn: plain settings, the same in Python, recipes and commands."""

from dataclasses import dataclass
from math import ceil, cos, inf, pi
from typing import Final

from onnxslim_tk.errors import TrainingError

_FLOOR: Final = 0.01
"""What is left of the rate at the end."""
_COUNTS: Final = ("steps", "batch", "every", "patience")
_POSITIVE: Final = ("rate", "clip")
_SHARES: Final = ("warm_up", "average", "weight_decay")
_LENGTHS: Final = ("epochs", "minutes")


@dataclass(frozen=True, slots=True)
class Schedule:
    """How long and how fast to learn.

    ``steps`` of the optimizer (AdamW; Loshchilov and Hutter, 2019), or so many ``epochs`` over the
    samples in their place; ``minutes`` of the clock end it before, and then the same call gives
    other bytes. ``batch`` samples a step; ``rate`` rises during the ``warm_up`` share and falls
    along a cosine. Gradients are cut to the norm ``clip``; weights are averaged over steps with
    ``average``, 0 for none; ``l1`` times the rate is what every entry of a matrix loses a step,
    down to zero (Tibshirani, 1996). Every ``every`` steps the state is looked at on the samples for
    choosing; after ``patience`` looks without a better one learning ends. Raises TrainingError for
    settings out of range.
    """

    steps: int = 1000
    epochs: float | None = None
    minutes: float | None = None
    batch: int = 16
    rate: float = 3e-4
    warm_up: float = 0.1
    weight_decay: float = 0.0
    l1: float = 0.0
    clip: float = 1.0
    average: float = 0.98
    every: int = 50
    patience: int = 6
    seed: int = 0

    def __post_init__(self) -> None:
        for name in _COUNTS:
            if getattr(self, name) < 1:
                raise TrainingError(f"train: {name} must be at least 1, got {getattr(self, name)}")
        for name in _POSITIVE:
            if not 0 < getattr(self, name) < inf:
                raise TrainingError(f"train: {name} must be above 0, got {getattr(self, name)}")
        for name in _SHARES:
            if not 0 <= getattr(self, name) < 1:
                raise TrainingError(f"train: {name} must be in [0, 1), got {getattr(self, name)}")
        for name in _LENGTHS:
            length = getattr(self, name)
            if length is not None and not 0 < length < inf:
                raise TrainingError(f"train: {name} must be above 0, got {length}")
        if not 0 <= self.l1 < inf:
            raise TrainingError(f"train: l1 must be 0 or more, got {self.l1}")

    def length(self, samples: int) -> int:
        """The number of steps over so many samples."""
        if self.epochs is None:
            return self.steps
        return max(1, ceil(self.epochs * samples / self.batch))

    def epoch_steps(self, samples: int) -> int:
        """The steps that see each of so many samples about once."""
        return max(1, ceil(samples / self.batch))

    def rate_at(self, share: float) -> float:
        """The rate once ``share`` in [0, 1] of the way is done (Loshchilov and Hutter, 2017)."""
        if share < self.warm_up:
            return self.rate * max(share / self.warm_up, _FLOOR)
        left = (share - self.warm_up) / max(1 - self.warm_up, 1e-9)
        return self.rate * (_FLOOR + (1 - _FLOOR) * (1 + cos(pi * min(left, 1.0))) / 2)
