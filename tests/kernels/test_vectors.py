from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from onnxslim_tk.kernels.codebook import nearest_entries
from onnxslim_tk.kernels.least_squares import damped, relative_error
from onnxslim_tk.kernels.rounding import error_feedback
from onnxslim_tk.kernels.vectors import nearest_down, vector_descent, vector_feedback

Array = NDArray[Any]

seeds = st.integers(0, 2**32 - 1)


def problem(seed: int, width: int, inputs: int = 72) -> tuple[Array, Array, Array, Array]:
    """A matrix, the covariance of its inputs, scales of its rows, and entries."""
    rng = np.random.default_rng(seed)
    given_rows = np.maximum(rng.normal(size=(300, inputs)) @ rng.normal(size=(inputs, inputs)), 0)
    scales = rng.uniform(0.5, 2, 24)
    entries = rng.normal(size=(16, width))
    matrix = scales[:, None] * rng.normal(size=(24, inputs))
    return matrix, given_rows.T @ given_rows / 300, scales, entries


def plain(matrix: Array, scales: Array, entries: Array) -> Array:
    return nearest_entries(matrix / scales[:, None], entries) * scales[:, None]


@given(seeds)
@settings(deadline=None, max_examples=20)
def test_vectors_of_one_value_are_swept_as_single_values_are(seed: int) -> None:
    matrix, covariance, scales, entries = problem(seed, 1)
    single = np.sort(entries[:, 0])
    expected = error_feedback(
        matrix, covariance, lambda _, column: nearest_entries(column / scales, single) * scales
    )
    swept = vector_feedback(matrix, covariance, scales, single[:, None])
    np.testing.assert_allclose(swept, expected, atol=1e-9)


@pytest.mark.parametrize("width", [2, 4, 8])
def test_feedback_beats_the_nearest_and_descent_beats_both(width: int) -> None:
    matrix, covariance, scales, entries = problem(width, width)
    normal = damped(covariance, 0.01)
    swept = vector_feedback(matrix, covariance, scales, entries)
    errors = [
        relative_error(matrix, rounded, normal)
        for rounded in (
            plain(matrix, scales, entries),
            swept,
            vector_descent(matrix, swept, normal, scales, entries),
        )
    ]
    assert errors[1] < 0.8 * errors[0]
    assert errors[2] < errors[1]


@pytest.mark.parametrize("width", [1, 2, 8])
@given(seeds)
@settings(deadline=None, max_examples=20)
def test_descent_never_raises_the_error(width: int, seed: int) -> None:
    matrix, covariance, scales, entries = problem(seed, width)
    normal = damped(covariance, 0.01)
    start = plain(matrix, scales, entries)
    found = vector_descent(matrix, start, normal, scales, entries)
    assert relative_error(matrix, found, normal) <= relative_error(matrix, start, normal) + 1e-12


@pytest.mark.parametrize("width", [2, 4])
def test_every_vector_is_a_scaled_entry(width: int) -> None:
    matrix, covariance, scales, entries = problem(5, width)
    swept = vector_feedback(matrix, covariance, scales, entries)
    for found in (swept, vector_descent(matrix, swept, damped(covariance, 0.01), scales, entries)):
        vectors = (found / scales[:, None]).reshape(-1, 1, width)
        assert np.abs(vectors - entries).max(axis=2).min(axis=1).max() < 1e-9


@given(seeds, st.sampled_from([1, 2, 4, 8]))
def test_down_a_column_errors_count_by_their_rows_scales(seed: int, width: int) -> None:
    matrix, _, scales, entries = problem(seed, width)
    found = nearest_down(matrix[:, 0], scales, entries)
    scaled = entries * scales.reshape(-1, 1, width)
    distances = ((scaled - matrix[:, 0].reshape(-1, 1, width)) ** 2).sum(2)
    reached = ((found - matrix[:, 0]).reshape(-1, width) ** 2).sum(1)
    np.testing.assert_allclose(reached, distances.min(1), atol=1e-9)
