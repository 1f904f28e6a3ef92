from importlib.util import find_spec

import pytest

pytest.importorskip("optuna", reason="the extra search is not installed")

from onnxslim_tk.search.evaluate import Evaluation
from onnxslim_tk.search.goal import hypervolume
from onnxslim_tk.search.strategies import STRATEGIES
from onnxslim_tk.search.strategies.strategy import Problem
from tests.search.problems import problem, walk

NEED_TORCH = ("gp", "reinforcement")
NAMES = [
    pytest.param(
        name,
        marks=pytest.mark.skipif(
            name in NEED_TORCH and find_spec("torch") is None, reason="PyTorch is not installed"
        ),
    )
    for name in STRATEGIES
]
BUDGETS = {"gp": 12}


def volume(of: Problem, found: list[Evaluation]) -> float:
    scores = [s for e in found if (s := of.score(e)) is not None and s[1] == 0]
    return hypervolume([point for point, _ in scores], tuple(1.0 for _ in of.goal.objectives))


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_asks_for_the_same_genomes(name: str) -> None:
    count = BUDGETS.get(name, 30)
    first, second = (walk(name, problem(), count)[0] for _ in range(2))
    assert [e.genome for e in first] == [e.genome for e in second]
    assert len(first) == count


@pytest.mark.parametrize("name", NAMES)
def test_genomes_stay_inside_the_space(name: str) -> None:
    of = problem(("size", "latency", "quality"))
    sizes = of.space.sizes
    for evaluation in walk(name, of, BUDGETS.get(name, 30))[0]:
        assert len(evaluation.genome) == len(sizes)
        assert all(0 <= level < size for level, size in zip(evaluation.genome, sizes, strict=True))


@pytest.mark.parametrize("name", [n for n in STRATEGIES if n not in ("random", *NEED_TORCH)])
def test_beats_random_search(name: str) -> None:
    of = problem()
    assert volume(of, walk(name, of)[0]) > volume(of, walk("random", of)[0]) + 0.05


def test_another_seed_draws_other_genomes() -> None:
    first, second = (walk("random", problem(seed=seed), 8)[0] for seed in (0, 1))
    assert {e.genome for e in first} != {e.genome for e in second}


def test_the_knapsack_comes_within_a_hair_of_the_limit() -> None:
    of = problem(("size",))
    found = walk("knapsack", of)[0]
    held = [e.figures.error for e in found if e.figures and e.figures.shortfall == 0]
    # No single option of this space is worth less than a thousandth.
    assert 0.03 < max(held) <= 0.05


def test_limits_on_time_alone_make_the_knapsack_look_for_time() -> None:
    of = problem(("latency",))
    found = walk("knapsack", of)[0]
    fastest = min(e.figures.latency for e in found if e.figures and e.figures.shortfall == 0)
    assert fastest < 0.75 * of.original.latency


def test_strategies_hear_what_others_found() -> None:
    of = problem()
    (best, *_) = sorted(
        (e for e in walk("knapsack", of)[0] if e.figures and e.figures.shortfall == 0),
        key=lambda e: e.figures.bytes if e.figures else 0,
    )
    for name in ("local", "regularized"):
        strategy = STRATEGIES[name](of)
        strategy.tell([best] * 6)
        near = [
            sum(a != b for a, b in zip(genome, best.genome, strict=True))
            for genome in strategy.ask(8)
        ]
        assert max(near) <= 6, name
    sampler = STRATEGIES["evolutionary"](of)
    sampler.tell([best])
    assert sampler.ask(4)


@pytest.mark.skipif(find_spec("torch") is None, reason="PyTorch is not installed")
def test_the_agent_s_walks_keep_to_their_budgets() -> None:
    of = problem()
    found = walk("reinforcement", of, 24)[0]
    shares = [of.forecaster.of(e.genome) for e in found]
    # Budgets are between .04 and .6 of bytes, of time, or of their mean.
    assert all(min(s.size, s.latency, (s.size + s.latency) / 2) <= 0.62 for s in shares)


def test_auto_gives_every_strategy_its_turn() -> None:
    of = problem()
    found, auto = walk("auto", of)
    assert len(found) == 60
    assert all(share > 0 for share in auto._shares)  # type: ignore[attr-defined]
