import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxslim_tk.kernels.codebook import (
    codebook,
    nearest_entries,
    on_integers,
    search_scales,
    storable_scales,
    vector_codebook,
)


@given(st.integers(2, 20), st.integers(0, 99), st.booleans())
@settings(deadline=None)
def test_has_no_more_entries_than_asked_for(clusters: int, seed: int, keep_zero: bool) -> None:
    values = np.random.default_rng(seed).standard_normal((20, 30))
    values[values < 0.3] = 0
    entries = codebook(values, clusters, keep_zero=keep_zero)
    assert len(entries) <= clusters
    assert np.all(np.diff(entries) > 0)
    assert not keep_zero or 0.0 in entries


def test_zeros_that_stay_have_no_say_in_the_other_entries() -> None:
    values = np.array([0.0] * 90 + [1.0, 1.0, 3.0])
    np.testing.assert_allclose(codebook(values, 3, keep_zero=True), [0, 1, 3])
    assert codebook(np.zeros(5), 4, keep_zero=True).tolist() == [0.0]


def test_heavy_values_pull_their_entry() -> None:
    values, weights = np.array([0.0, 1.0, 9.0]), np.array([1.0, 3.0, 1.0])
    assert codebook(values, 2, weights)[0] == pytest.approx(0.75)


def test_entries_become_whole_numbers_up_to_the_top_of_the_grid() -> None:
    entries, unit = on_integers(np.array([-0.5, 0.0, 0.25, 1.0]))
    assert entries.tolist() == [-32, 0, 16, 63]
    assert unit == pytest.approx(1 / 63)
    assert on_integers(np.array([1.0, 1.001, 2.0]))[0].tolist() == [32, 63]
    assert on_integers(np.zeros(3))[1] == 1.0


@pytest.mark.parametrize("count", [100, 40000])
def test_vectors_go_to_their_nearest_entry(count: int) -> None:
    rng = np.random.default_rng(0)
    centres = np.array([[0.0, 5.0], [5.0, 0.0], [-5.0, -5.0]])
    vectors = centres[rng.integers(0, 3, count)] + rng.uniform(-1, 1, (count, 2))
    entries = vector_codebook(vectors, 3, seed=1)
    assert len(entries) == 3
    found = nearest_entries(vectors, entries)
    distances = ((vectors[:, None] - entries) ** 2).sum(2)
    np.testing.assert_array_equal(found, entries[distances.argmin(1)])


def test_a_searched_scale_is_no_worse_than_the_given_one() -> None:
    rng = np.random.default_rng(2)
    matrix, entries = rng.standard_normal((50, 40)), np.array([-3.0, -1.0, 1.0, 3.0])
    weights, given = rng.random((50, 40)), np.full(50, 0.9)

    def errors(scales: np.ndarray) -> np.ndarray:
        rebuilt = nearest_entries(matrix / scales[:, None], entries) * scales[:, None]
        return np.asarray((weights * (matrix - rebuilt) ** 2).sum(1))

    found = search_scales(matrix, entries, given, weights)
    assert np.all(errors(found) <= errors(given) * 1.01)
    assert errors(found).sum() < 0.95 * errors(given).sum()


def test_scales_fit_float16_where_its_range_allows() -> None:
    scales = storable_scales(np.array([0.001234567, 0.5]))
    assert np.array_equal(scales, scales.astype(np.float16).astype(np.float32))
    tiny = storable_scales(np.array([1e-7, 0.001234567, 1e9]))
    assert np.array_equal(tiny[[0, 2]], np.array([1e-7, 1e9], np.float32))
    assert tiny[1] == scales[0]
