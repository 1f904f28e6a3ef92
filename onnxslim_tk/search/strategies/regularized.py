"""Regularized evolution: the youngest survive."""

from collections import deque
from collections.abc import Sequence
from typing import ClassVar, Final

import numpy as np

from onnxslim_tk.search.evaluate import Evaluation
from onnxslim_tk.search.goal import better
from onnxslim_tk.search.space import Genome
from onnxslim_tk.search.strategies.knapsack import Knapsack
from onnxslim_tk.search.strategies.strategy import Problem

_POPULATION: Final = 24
_SAMPLE: Final = 6
_MUTATED: Final = 2.0
"""Genes that change on the mean."""


class Regularized:
    """Parents win a tournament, children differ in a gene or two, and the oldest one dies.

    Aging evolution (Real et al., 2019) from the knapsack's points; a tournament is won by whom
    fewest of its members beat.
    """

    name: ClassVar[str] = "regularized"

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._start = Knapsack(problem)
        self._rng = np.random.default_rng((problem.seed, 2))
        self._living: deque[Evaluation] = deque(maxlen=_POPULATION)
        self._known: set[Genome] = set()

    def ask(self, count: int) -> list[Genome]:
        """The knapsack's points at first, then children."""
        if len(self._living) < _SAMPLE:
            found = self._start.ask(count)
            if found:
                return found
        return [self._child() for _ in range(count)]

    def tell(self, evaluations: Sequence[Evaluation]) -> None:
        """Take the newest into the population."""
        self._start.tell(evaluations)
        for evaluation in evaluations:
            self._known.add(evaluation.genome)
            if evaluation.figures is not None:
                self._living.append(evaluation)

    def _child(self) -> Genome:
        space = self._problem.space
        parent = self._parent()
        for _ in range(100):
            child = list(parent)
            chances = self._rng.random(len(child)) < _MUTATED / max(len(child), 1)
            for k in np.flatnonzero(chances):
                child[k] = int(self._rng.integers(space.sizes[k]))
            genome = space.clipped(child)
            if genome not in self._known:
                break
        return genome

    def _parent(self) -> Genome:
        if not self._living:
            return self._problem.space.untouched
        picked = self._rng.integers(len(self._living), size=_SAMPLE)
        rivals = [self._living[int(k)] for k in picked]
        scores = [s for rival in rivals if (s := self._problem.score(rival)) is not None]
        beaten = [sum(better(other, mine) for other in scores) for mine in scores]
        return rivals[beaten.index(min(beaten))].genome
