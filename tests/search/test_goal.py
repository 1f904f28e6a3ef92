import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxslim_tk.errors import RecipeError
from onnxslim_tk.search.goal import Figures, Goal, better, dominates, front, hypervolume

POINTS = st.lists(st.tuples(*[st.integers(0, 9).map(lambda n: n / 10)] * 3), max_size=8)
ORIGINAL = Figures(1000, 2000.0, 50.0, 100.0, 0.0)


def test_values_are_shares_of_the_original() -> None:
    goal = Goal(("size", "latency", "macs", "quality"))
    figures = Figures(250, 1000.0, 10.0, 100.0, 0.01)
    assert goal.point(figures, ORIGINAL) == (0.25, 0.2, 0.5, 0.01)


def test_quality_is_the_metric_s_drop_where_there_is_one() -> None:
    figures = Figures(250, 1000.0, 10.0, 100.0, 0.01, drop=0.004)
    assert Goal(("quality",)).point(figures, ORIGINAL) == (0.004,)


def test_limits_add_to_what_the_budget_misses() -> None:
    goal = Goal(("size",), {"latency": 0.1})
    figures = Figures(250, 1000.0, 10.0, 100.0, 0.01, shortfall=0.5)
    assert goal.violation(figures, ORIGINAL) == pytest.approx(1.5)
    assert goal.violation(Figures(250, 1000.0, 5.0, 100.0, 0.01), ORIGINAL) == 0


@pytest.mark.parametrize("names", [(), ("size", "size"), ("speed",)])
def test_refuses_objectives_that_make_no_sense(names: tuple[str, ...]) -> None:
    with pytest.raises(RecipeError, match="search:"):
        Goal(names)


def test_what_keeps_the_limits_beats_what_does_not() -> None:
    assert better(((0.9,), 0.0), ((0.1,), 0.2))
    assert better(((0.9,), 0.1), ((0.1,), 0.2))
    assert not better(((0.9, 0.1), 0.0), ((0.1, 0.9), 0.0))


@given(POINTS)
def test_no_point_of_the_front_is_dominated_and_every_other_is(
    points: list[tuple[float, ...]],
) -> None:
    kept = {points[k] for k in front(points)}
    assert not any(dominates(a, b) for a in kept for b in kept)
    assert all(p in kept or any(dominates(q, p) for q in kept) for p in points)


@given(POINTS)
def test_the_hypervolume_is_the_share_of_dominated_cells(points: list[tuple[float, ...]]) -> None:
    corners = (np.indices((10, 10, 10)).reshape(3, -1).T + 1) / 10
    held = np.zeros(len(corners), bool)
    for point in points:
        held |= (corners > np.array(point) + 1e-9).all(1)
    assert hypervolume(points, (1.0, 1.0, 1.0)) == pytest.approx(held.mean())


def test_points_beyond_the_reference_hold_nothing() -> None:
    assert hypervolume([(1.2, 0.1)], (1.0, 1.0)) == 0
