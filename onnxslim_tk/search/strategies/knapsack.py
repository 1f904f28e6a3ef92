"""The knapsack: options of least expected error for what they save, at the edge of the budget."""

from collections.abc import Sequence
from math import exp, log
from typing import ClassVar, Final

from onnxslim_tk.search.evaluate import Evaluation
from onnxslim_tk.search.forecast import Forecaster
from onnxslim_tk.search.goal import Goal
from onnxslim_tk.search.space import Genome, Space
from onnxslim_tk.search.strategies.strategy import Problem

_SWEEPS: Final = 4
# Prices of a whole model's bytes or time, as errors: from what changes nothing to what ruins it.
_CHEAP: Final = 1e-5
_DEAR: Final = 1e2
_NEAR: Final = 0.05
_MILDER: Final = 32
_MOST_LEANINGS: Final = 64


def leanings(goal: Goal, count: int = 5) -> list[tuple[float, float]]:
    """Weights of bytes and of time for trade-offs, from the middle outwards."""
    size, time = "size" in goal.objectives, bool({"latency", "macs"} & set(goal.objectives))
    size, time = size or "size" in goal.limits, time or bool({"latency", "macs"} & set(goal.limits))
    if not time:
        return [(1.0, 0.0)]
    if not size:
        return [(0.0, 1.0)]
    spread = [k / (count - 1) for k in range(count)]
    spread.sort(key=lambda share: abs(share - 0.5))
    return [(1 - share, share) for share in spread]


def packed(
    space: Space, forecaster: Forecaster, price: float, leaning: tuple[float, float]
) -> Genome:
    """The genome of least expected error plus ``price`` times what is left of bytes and time.

    Lagrange multipliers take the place of limits (Everett, 1963); genes that touch the same
    layers are settled by sweeps over all.
    """
    genome = list(space.untouched)
    for sweep in range(_SWEEPS):
        before = list(genome)
        order = range(len(genome)) if sweep % 2 == 0 else range(len(genome) - 1, -1, -1)
        for k in order:
            changes = [forecaster.change(genome, k, level) for level in range(space.sizes[k])]
            costs = [
                c.error + price * (leaning[0] * c.size + leaning[1] * c.latency) for c in changes
            ]
            genome[k] = min(range(len(costs)), key=lambda level: (costs[level], level))
        if genome == before:
            break
    return tuple(genome)


class Knapsack:
    """Closes in on the price at which the budget breaks, for each leaning to bytes or time.

    Prices all over the range come first, then those about the edge, then leanings between. Where
    quality is an objective as well, milder prices follow.
    """

    name: ClassVar[str] = "knapsack"

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._seen: dict[Genome, bool] = {}
        self._lines = [_Line(problem, leaning) for leaning in leanings(problem.goal)]
        self._asked: set[Genome] = set()
        self._count = len(self._lines)

    def ask(self, count: int) -> list[Genome]:
        """The next points of all leanings, as many of each as there is room for."""
        found: list[Genome] = []
        while not found:
            for k, line in enumerate(self._lines):
                room = -(-(count - len(found)) // (len(self._lines) - k))
                genomes = line.next(room, self._seen, self._asked)
                self._asked.update(genomes)
                found += genomes
            if not found and not self._refined():
                break
        return found

    def _refined(self) -> bool:
        """Twice as many leanings, where there are several; False where no more would help."""
        if len(self._lines) < 2 or self._count > _MOST_LEANINGS:
            return False
        self._count = 2 * self._count - 1
        known = {line.leaning for line in self._lines}
        new = [pair for pair in leanings(self._problem.goal, self._count) if pair not in known]
        self._lines += [_Line(self._problem, leaning) for leaning in new]
        return True

    def tell(self, evaluations: Sequence[Evaluation]) -> None:
        """Note which genomes keep the limits."""
        for evaluation in evaluations:
            score = self._problem.score(evaluation)
            self._seen[evaluation.genome] = score is not None and score[1] == 0


class _Line:
    """The prices of one leaning, and the genomes that they lead to."""

    def __init__(self, problem: Problem, leaning: tuple[float, float]) -> None:
        self._problem, self.leaning = problem, leaning
        self._genomes: dict[float, Genome] = {}
        self._milder = _MILDER if "quality" in problem.goal.objectives else 0

    def next(self, count: int, seen: dict[Genome, bool], asked: set[Genome]) -> list[Genome]:
        """Up to ``count`` genomes that nobody asked for; none where some are awaited still."""
        while count > 0:
            low, high = self._edges(seen)
            if high - low <= _NEAR:
                return self._before(low, count, seen, asked)
            prices = [low + (high - low) * (k + 1) / (count + 1) for k in range(count)]
            genomes = [self._packed(price) for price in prices]
            unknown = [genome for genome in dict.fromkeys(genomes) if genome not in seen]
            if unknown:
                return [genome for genome in unknown if genome not in asked]
        return []

    def _edges(self, seen: dict[Genome, bool]) -> tuple[float, float]:
        """The dearest price that held, and the cheapest that did not."""
        told = [(p, seen[genome]) for p, genome in self._genomes.items() if genome in seen]
        high = min((p for p, held in told if not held), default=log(_DEAR))
        low = max((p for p, held in told if held and p < high), default=log(_CHEAP))
        return low, high

    def _before(
        self, low: float, count: int, seen: dict[Genome, bool], asked: set[Genome]
    ) -> list[Genome]:
        """Genomes of prices below the edge, the widest gap first."""
        found: list[Genome] = []
        for k in range(1, self._milder):
            genome = self._packed(low + (log(_CHEAP) - low) * _halved(k))
            if len(found) < count and not {genome} & (asked | seen.keys() | set(found)):
                found.append(genome)
        return found

    def _packed(self, price: float) -> Genome:
        if price not in self._genomes:
            problem = self._problem
            self._genomes[price] = packed(
                problem.space, problem.forecaster, exp(price), self.leaning
            )
        return self._genomes[price]


def _halved(k: int) -> float:
    """The k-th place of 0 to 1 where each falls into the widest gap (van der Corput, 1935)."""
    place, step = 0.0, 0.5
    while k:
        place, k, step = place + step * (k & 1), k >> 1, step / 2
    return place
