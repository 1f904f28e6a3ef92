"""Two models on the same items: the metric of both, its difference, and how far they agree."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.tasks.evaluation import Evaluation, Items, Scorer, running
from onnxslim_tk.measure.runtime import Session

_ROUNDS: Final = 1000
_TAIL: Final = 0.025


@dataclass(frozen=True, slots=True)
class Figures:
    """What a task says of a result beside its original.

    ``difference`` is result less original, with its 95 % interval; these and the metric are None
    where there is no truth. ``groups`` counts the sources that ``items`` come from.
    """

    metric: str | None
    original: float | None
    result: float | None
    difference: float | None
    low: float | None
    high: float | None
    items: int
    groups: int
    agreement: str
    agreed: float


class Comparison:
    """The test items of a task, with the original's answers, for any number of results."""

    def __init__(self, task: Evaluation, original: Path, count: int | None) -> None:
        self.task = task
        self.items: Items = task.items(count or task.test_items, "test")
        self.answers = self._answers(original)
        self.everything = np.arange(len(self.items), dtype=np.int64)
        self._scorer = self._scored(self.answers)

    @property
    def score(self) -> float | None:
        """The original's figure."""
        return None if self._scorer is None else self._scorer(self.everything)

    def against(self, result: Path) -> Figures:
        """The figures of a result; raises SessionError where it doesn't run."""
        answers = self._answers(result)
        agreed = self.task.agree(self.answers, answers)
        before, after = self._scorer, self._scored(answers)
        groups = self.items.groups
        counts = len(self.items), len(np.unique(groups))
        if before is None or after is None:
            return Figures(None, None, None, None, None, None, *counts, self.task.agreement, agreed)
        original, found = before(self.everything), after(self.everything)
        low, high = interval(before, after, groups)
        return Figures(
            self.task.metric,
            original,
            found,
            found - original,
            low,
            high,
            *counts,
            self.task.agreement,
            agreed,
        )

    def _answers(self, model: Path) -> list[Any]:
        run = running(Session(model))
        return [self.task.answer(run, feed) for feed in self.items.feeds]

    def _scored(self, answers: list[Any]) -> Scorer | None:
        return self.task.scorer(answers, self.items.truths) if self.task.metric else None


def interval(before: Scorer, after: Scorer, groups: NDArray[np.int64]) -> tuple[float, float]:
    """The 95 % interval of ``after`` less ``before``.

    Whole groups are drawn with replacement, the same for both; a single group tells nothing and
    gives NaN. Source: the paired percentile bootstrap (Efron and Tibshirani, 1993).
    """
    if len(np.unique(groups)) < 2:
        return float("nan"), float("nan")
    draw = _drawing(groups)
    rng = np.random.default_rng(0)
    differences = np.empty(_ROUNDS)
    for place in range(_ROUNDS):
        picks = draw(rng)
        differences[place] = after(picks) - before(picks)
    low, high = np.nanquantile(differences, [_TAIL, 1 - _TAIL])
    return float(low), float(high)


def _drawing(
    groups: NDArray[np.int64],
) -> Callable[[np.random.Generator], NDArray[np.int64]]:
    known = np.unique(groups)
    if len(known) == len(groups):
        return lambda rng: rng.integers(0, len(groups), len(groups))
    members = [np.flatnonzero(groups == group) for group in known]

    def draw(rng: np.random.Generator) -> NDArray[np.int64]:
        return np.concatenate([members[k] for k in rng.integers(0, len(members), len(members))])

    return draw
