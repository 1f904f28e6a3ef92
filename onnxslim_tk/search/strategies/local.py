"""Local swaps: small moves from the best plans known."""

from collections.abc import Sequence
from itertools import islice
from typing import ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from onnxslim_tk.search.evaluate import Evaluation
from onnxslim_tk.search.space import Genome
from onnxslim_tk.search.strategies.knapsack import Knapsack
from onnxslim_tk.search.strategies.strategy import Problem

_TRIES: Final = 60
_TINY: Final = 1e-9
# Nobody sees a smaller error.
_CLEAR: Final = 1e-4


class LocalSwaps:
    """One gene a step milder, another one a step stronger, or either alone.

    Begins at the knapsack's first points; moves start from the plans that none beats, and of
    some at random the one goes first that is foretold best for a trade-off drawn at random (as
    2-opt exchanges, Croes, 1958). What was tried is not tried again.
    """

    name: ClassVar[str] = "local"

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._start = Knapsack(problem)
        self._rng = np.random.default_rng((problem.seed, 1))
        self._known: dict[Genome, Evaluation] = {}
        self._asked: set[Genome] = set()
        self._turn = 0

    def ask(self, count: int) -> list[Genome]:
        """Neighbours of plans that none beats, one after the other."""
        held = [e for e in self._known.values() if self._holds(e)]
        if not held:
            found = self._start.ask(count)
            if found:
                return found
        best = self._problem.best(list(self._known.values()))
        found = []
        for _ in range(4 * count):
            if len(found) == count or not best:
                break
            self._turn += 1
            genome = self._neighbour(best[self._turn % len(best)].genome)
            if genome is not None:
                self._asked.add(genome)
                found.append(genome)
        return found

    def tell(self, evaluations: Sequence[Evaluation]) -> None:
        """Note what came of genomes."""
        self._start.tell(evaluations)
        self._known |= {evaluation.genome: evaluation for evaluation in evaluations}

    def _holds(self, evaluation: Evaluation) -> bool:
        score = self._problem.score(evaluation)
        return score is not None and score[1] == 0

    def _neighbour(self, genome: Genome) -> Genome | None:
        """Of some random moves the one that is foretold best and wasn't tried."""
        space = self._problem.space
        if not space.genes:
            return None
        candidates = []
        for _ in range(_TRIES):
            other = list(genome)
            stronger, milder = self._rng.integers(len(genome), size=2)
            kind = int(self._rng.integers(3))
            if kind < 2:
                other[stronger] += 1
            if kind > 0:
                other[milder] -= 1
            moved = space.clipped(other)
            if moved != genome and moved not in self._known and moved not in self._asked:
                candidates.append(moved)
        weights = self._rng.dirichlet(np.ones(3))
        unique = islice(dict.fromkeys(candidates), _TRIES // 4)
        return min(unique, key=lambda moved: self._foretold(moved, weights), default=None)

    def _foretold(self, genome: Genome, weights: NDArray[np.float64]) -> float:
        """The weighted mean of error, bytes and time in decades."""
        told = self._problem.forecaster.of(genome)
        figures = np.array([told.error, told.size, told.latency])
        return float(weights @ np.log10(np.maximum(figures, (_CLEAR, _TINY, _TINY))))
