"""Differentiable search: gradients move shares of options, and the shares make plans."""

from collections.abc import Sequence
from math import exp, log
from typing import ClassVar, Final

import numpy as np

from onnxslim_tk.search.evaluate import Evaluation
from onnxslim_tk.search.relax import Leaning
from onnxslim_tk.search.space import Genome
from onnxslim_tk.search.strategies.knapsack import leanings
from onnxslim_tk.search.strategies.strategy import Problem

_CHEAP: Final = 1e-3
_DEAR: Final = 1e2
_DRAWS: Final = 20


class Differentiable:
    """Halves the price of a relaxation (:mod:`onnxslim_tk.search.relax`) for each trade-off.

    Each descent gives a plan of the likeliest options; once all edges are found, plans are drawn
    by the shares there. Needs PyTorch.
    """

    name: ClassVar[str] = "differentiable"

    def __init__(self, problem: Problem) -> None:
        if problem.relax is None:
            raise ValueError("differentiable: it needs a way to relax")
        self._problem, self._relax = problem, problem.relax
        self._rng = np.random.default_rng((problem.seed, 3))
        pairs = leanings(problem.goal, 4)
        self._edges = {pair: (log(_CHEAP), log(_DEAR)) for pair in pairs}
        self._waiting: dict[Genome, list[tuple[tuple[float, float], float]]] = {}
        self._held: dict[Genome, bool] = {}
        self._shares: dict[tuple[float, float], list[list[float]]] = {}

    def ask(self, count: int) -> list[Genome]:
        """The plan at the middle of each trade-off's range, or draws by the shares found."""
        open_pairs = [p for p, (low, high) in self._edges.items() if high - low > log(2)]
        if not open_pairs:
            return [g for g in (self._draw() for _ in range(count)) if g is not None]
        wanted = [(pair, sum(self._edges[pair]) / 2) for pair in open_pairs[:count]]
        asked = [
            Leaning(exp(middle), pair[0], pair[1], self._problem.seed) for pair, middle in wanted
        ]
        found = []
        for (pair, middle), shares in zip(wanted, self._relax(asked), strict=True):
            genome = tuple(int(np.argmax(row)) for row in shares)
            self._shares[pair] = shares
            self._waiting.setdefault(genome, []).append((pair, middle))
            found.append(genome)
        return found

    def tell(self, evaluations: Sequence[Evaluation]) -> None:
        """Move the ends of the ranges."""
        for evaluation in evaluations:
            score = self._problem.score(evaluation)
            holds = score is not None and score[1] == 0
            self._held[evaluation.genome] = holds
            for pair, middle in self._waiting.pop(evaluation.genome, []):
                low, high = self._edges[pair]
                self._edges[pair] = (middle, high) if holds else (low, middle)

    def _draw(self) -> Genome | None:
        pairs = list(self._shares)
        if not pairs:
            return None
        for _ in range(_DRAWS):
            shares = self._shares[pairs[int(self._rng.integers(len(pairs)))]]
            genome = tuple(
                int(self._rng.choice(len(row), p=np.array(row) / np.sum(row))) for row in shares
            )
            if genome not in self._held:
                return genome
        return None
