import numpy as np
import pytest

from onnxslim_tk.measure.mixtures import mixtures
from tests.models import normal


def test_mixtures_lie_between_two_samples() -> None:
    feeds = [{"x": np.full((1, 3), float(k), np.float32)} for k in (0, 10)]
    found = mixtures(feeds, 20, seed=0)
    values = np.array([feed["x"][0, 0] for feed in found])
    assert len(found) == 20
    assert values.min() >= 2
    assert values.max() <= 8
    assert found[0]["x"].dtype == np.float32


def test_all_inputs_of_a_mixture_are_of_the_same_two_samples() -> None:
    feeds = [{"a": normal(k, 1, 4), "b": 2 * normal(k, 1, 4)} for k in range(5)]
    for feed in mixtures(feeds, 10, seed=1):
        np.testing.assert_allclose(feed["b"], 2 * feed["a"], rtol=1e-5)


def test_the_same_seed_gives_the_same_mixtures() -> None:
    feeds = [{"x": normal(k, 2)} for k in range(4)]
    first, same, other = (mixtures(feeds, 3, seed)[0]["x"] for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, same)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize(
    "feeds",
    [
        [{"x": normal(0, 3)}],
        [{"x": np.arange(3)}, {"x": np.arange(3)}],
        [{"x": normal(0, 3), "m": np.ones(3, bool)}] * 2,
        [{"x": normal(0, 3)}, {"x": normal(0, 4)}],
        [],
    ],
)
def test_what_has_no_mean_is_not_mixed(feeds: list[dict[str, np.ndarray]]) -> None:
    assert mixtures(feeds, 5, seed=0) == []
