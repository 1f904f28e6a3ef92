"""Cuts in rounds: how much goes before each stretch of training."""

from collections.abc import Mapping
from dataclasses import dataclass

from onnxslim_tk.errors import TrainingError


@dataclass(frozen=True, slots=True)
class Cuts:
    """What is cut while a model trains, in so many ``rounds``: cut, refit, train, cut again.

    ``sparsity`` is the share of zeros at the end, which grows fast at first and slower later (Zhu
    and Gupta, 2018); ``keep`` the share of channels that stay, the same share in each round.
    ``first`` False trains once before the first cut. Raises TrainingError for settings out of
    range.
    """

    sparsity: float | None = None
    keep: float | None = None
    rounds: int = 1
    first: bool = True

    def __post_init__(self) -> None:
        if self.sparsity is not None and not 0 < self.sparsity < 1:
            raise TrainingError(f"train: sparsity must be in (0, 1), got {self.sparsity}")
        if self.keep is not None and not 0 < self.keep <= 1:
            raise TrainingError(f"train: keep must be in (0, 1], got {self.keep}")
        if self.rounds < 1:
            raise TrainingError(f"train: rounds must be at least 1, got {self.rounds}")
        if self.sparsity is None and self.keep is None and self.rounds > 1:
            raise TrainingError("train: rounds need something to cut: sparsity, or channels")

    def targets(self) -> list[Mapping[str, float]]:
        """For each stretch of training what is to be left of the original before it, by method."""
        steps: list[Mapping[str, float]] = [] if self.first else [{}]
        for number in range(1, self.rounds + 1):
            share = number / self.rounds
            target = {}
            if self.keep is not None:
                target["channels"] = self.keep**share
            if self.sparsity is not None:
                target["sparsify"] = self.sparsity * (1 - (1 - share) ** 3)
            steps.append(target)
        return steps
