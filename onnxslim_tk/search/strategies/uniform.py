"""Random search, the control: what others must beat."""

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from onnxslim_tk.search.evaluate import Evaluation
from onnxslim_tk.search.space import Genome
from onnxslim_tk.search.strategies.strategy import Problem


class Random:
    """Every level of every gene is equally likely (Bergstra and Bengio, 2012)."""

    name: ClassVar[str] = "random"

    def __init__(self, problem: Problem) -> None:
        self._sizes = problem.space.sizes
        self._rng = np.random.default_rng(problem.seed)

    def ask(self, count: int) -> list[Genome]:
        """Genomes drawn at random."""
        return [tuple(map(int, self._rng.integers(self._sizes))) for _ in range(count)]

    def tell(self, evaluations: Sequence[Evaluation]) -> None:
        """Learn nothing."""
