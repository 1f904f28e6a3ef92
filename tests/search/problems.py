"""A made-up problem whose true figures are the forecast's, so that strategies run in no time."""

from collections.abc import Sequence

from onnxslim_tk.plan.proposal import Proposal
from onnxslim_tk.search.evaluate import Evaluation
from onnxslim_tk.search.forecast import Forecaster
from onnxslim_tk.search.goal import Figures, Goal
from onnxslim_tk.search.relax import Leaning
from onnxslim_tk.search.space import Extent, Gene, Genome, Space
from onnxslim_tk.search.strategies import STRATEGIES
from onnxslim_tk.search.strategies.knapsack import packed
from onnxslim_tk.search.strategies.strategy import Problem, Strategy

BYTES = 1000
MOST_ERROR = 0.05


def space(layers: int = 6) -> Space:
    """Layers that can lose channels, bits, or both; some feel it a hundred times more."""
    genes = []
    for k in range(layers):
        weight = 10.0 ** (-(k % 3))
        cut = [_row(k, "channels", share, weight * share**2, macs=True) for share in (0.3, 0.6)]
        bits = [_row(k, "share", share, weight * error) for share, error in _BITS]
        genes.append(Gene("structure", (f"layer{k}",), tuple(cut)))
        genes.append(Gene("numbers", (f"layer{k}",), tuple(bits)))
    extents = {f"layer{k}": Extent(BYTES, BYTES, 10.0) for k in range(layers)}
    return Space(tuple(sorted(genes, key=lambda gene: gene.stage != "structure")), extents)


_BITS = ((0.74, 1e-4), (0.86, 1e-3), (0.93, 1e-2))


def _row(k: int, method: str, share: float, error: float, macs: bool = False) -> Proposal:
    return Proposal(
        (f"layer{k}",),
        method,
        share,
        bytes_saved=round(BYTES * share),
        macs_saved=round(BYTES * share) if macs else 0,
        cost_saved=10 * share if macs else 3.0,
        error=error,
    )


ORIGINAL = Figures(6 * BYTES, 6 * BYTES, 60.0, 1500.0, 0.0)


def problem(
    objectives: tuple[str, ...] = ("size", "latency"), seed: int = 0, budget: int = 60
) -> Problem:
    """The made-up problem."""
    made = space()
    return Problem(made, Goal(objectives), ORIGINAL, Forecaster(made), seed, budget, _relax)


def _relax(leanings: Sequence[Leaning]) -> list[list[list[float]]]:
    """Shares that the knapsack would have, in place of gradients."""
    made = space()
    found = []
    for leaning in leanings:
        genome = packed(made, Forecaster(made), leaning.price, (leaning.size, leaning.time))
        rows = zip(genome, made.sizes, strict=True)
        found.append([[0.9 if k == level else 0.1 for k in range(n)] for level, n in rows])
    return found


def run(of: Problem, genome: Genome) -> Evaluation:
    """What a genome comes to."""
    told = of.forecaster.of(genome)
    figures = Figures(
        round(told.size * ORIGINAL.bytes),
        told.macs * ORIGINAL.macs,
        told.latency * ORIGINAL.latency,
        1500.0,
        told.error,
        shortfall=max(0.0, told.error / MOST_ERROR - 1),
    )
    return Evaluation(genome, figures, "sha")


def walk(
    name: str, of: Problem, evaluations: int = 60, batch: int = 8
) -> tuple[list[Evaluation], Strategy]:
    """A whole search with a strategy: all evaluations in their order."""
    strategy = STRATEGIES[name](of)
    found: dict[Genome, Evaluation] = {}
    for _ in range(evaluations):
        genomes = strategy.ask(min(batch, evaluations - len(found)))
        for genome in genomes:
            found.setdefault(genome, run(of, genome))
        strategy.tell([found[genome] for genome in genomes])
        if len(found) >= evaluations or not genomes:
            break
    return list(found.values()), strategy
