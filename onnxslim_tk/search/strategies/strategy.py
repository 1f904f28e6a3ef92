"""The protocol of strategies: ask for genomes to run, tell what came of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

from onnxslim_tk.search.evaluate import Evaluation
from onnxslim_tk.search.forecast import Forecaster
from onnxslim_tk.search.goal import Figures, Goal, Point, better
from onnxslim_tk.search.relax import Leaning
from onnxslim_tk.search.space import Genome, Space

Relax = Callable[[Sequence[Leaning]], list[list[list[float]]]]


@dataclass(frozen=True, slots=True)
class Problem:
    """What a strategy works on.

    ``original`` are the original's figures, ``budget`` the number of evaluations that are
    planned, None where only time counts. ``relax`` finds shares of options for a trade-off by
    gradients, on a worker.
    """

    space: Space
    goal: Goal
    original: Figures
    forecaster: Forecaster
    seed: int = 0
    budget: int | None = None
    relax: Relax | None = None

    def score(self, evaluation: Evaluation) -> tuple[Point, float] | None:
        """Values and violation, None for what did not run."""
        if evaluation.figures is None:
            return None
        figures, original = evaluation.figures, self.original
        return self.goal.point(figures, original), self.goal.violation(figures, original)

    def best(self, evaluations: Sequence[Evaluation]) -> list[Evaluation]:
        """Those that no other beats; where none keeps the limits, the one that is nearest."""
        scored = [(e, s) for e in evaluations if (s := self.score(e)) is not None]
        return [e for e, mine in scored if not any(better(s, mine) for _, s in scored)]


class Strategy(Protocol):
    """Something that proposes genomes.

    It hears of every evaluation of the search, also of those that others asked for, in an order
    that is the same in every run with the same seed.
    """

    name: ClassVar[str]

    def __init__(self, problem: Problem) -> None: ...

    def ask(self, count: int) -> list[Genome]:
        """Up to ``count`` genomes to run next; none where the strategy has come to its end."""
        ...

    def tell(self, evaluations: Sequence[Evaluation]) -> None:
        """What came of genomes."""
        ...
