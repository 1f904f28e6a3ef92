"""Auto: the knapsack first, then whoever brings most."""

from collections.abc import Sequence
from math import log, sqrt
from typing import ClassVar, Final

from onnxslim_tk.search.evaluate import Evaluation
from onnxslim_tk.search.goal import Point, hypervolume
from onnxslim_tk.search.space import Genome
from onnxslim_tk.search.strategies.evolutionary import Evolutionary
from onnxslim_tk.search.strategies.knapsack import Knapsack
from onnxslim_tk.search.strategies.local import LocalSwaps
from onnxslim_tk.search.strategies.regularized import Regularized
from onnxslim_tk.search.strategies.strategy import Problem, Strategy

_START: Final = 0.4
_START_EVALUATIONS: Final = 24
_CURIOSITY: Final = 0.5


class Auto:
    """The knapsack for a good third of the budget, then a bandit over the others.

    Whose points widened the front most, by hypervolume and per evaluation, is asked more often
    (UCB1, Auer et al., 2002). All hear of all evaluations.
    """

    name: ClassVar[str] = "auto"

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._first = Knapsack(problem)
        self._others: list[Strategy] = [
            LocalSwaps(problem),
            Evolutionary(problem),
            Regularized(problem),
        ]
        self._gains = [0.0] * len(self._others)
        self._shares = [0] * len(self._others)
        self._asked: dict[Genome, int] = {}
        self._points: list[Point] = []
        self._spent = 0
        self._opening = (
            _START_EVALUATIONS if problem.budget is None else max(1, round(_START * problem.budget))
        )

    def ask(self, count: int) -> list[Genome]:
        """What the one whose turn it is asks for; another one where that has come to its end."""
        if self._spent < self._opening:
            found = self._first.ask(count)
            if found:
                return found
        for k in self._ranking():
            found = self._others[k].ask(count)
            if found:
                self._asked |= dict.fromkeys(found, k)
                return found
        return []

    def tell(self, evaluations: Sequence[Evaluation]) -> None:
        """Let all know, and note whose points were worth something."""
        for strategy in (self._first, *self._others):
            strategy.tell(evaluations)
        reference = tuple(1.0 for _ in self._problem.goal.objectives)
        for evaluation in evaluations:
            self._spent += 1
            score = self._problem.score(evaluation)
            gain = 0.0
            if score is not None and score[1] == 0:
                before = hypervolume(self._points, reference)
                self._points.append(score[0])
                gain = hypervolume(self._points, reference) - before
            who = self._asked.pop(evaluation.genome, None)
            if who is not None:
                self._gains[who] += gain
                self._shares[who] += 1

    def _ranking(self) -> list[int]:
        """The others, the most promising first."""
        total = sum(self._shares)
        most = max(
            (g / n for g, n in zip(self._gains, self._shares, strict=True) if n), default=0.0
        )

        def promise(k: int) -> float:
            if not self._shares[k]:
                return float("inf")
            mean = self._gains[k] / self._shares[k] / (most or 1.0)
            return mean + _CURIOSITY * sqrt(log(total) / self._shares[k])

        return sorted(range(len(self._others)), key=lambda k: (-promise(k), k))
