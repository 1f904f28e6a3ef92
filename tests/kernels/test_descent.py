from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from onnxslim_tk.kernels.descent import codebook_refit, coordinate_descent
from onnxslim_tk.kernels.grouped import grouped_damped, grouped_error, grouped_error_feedback

Array = NDArray[Any]

seeds = st.integers(0, 2**32 - 1)
# Groups worked on together, one matrix in several blocks, and wide groups one by one.
SHAPES = [(4, 3, 9), (1, 6, 150), (2, 5, 70)]


def problem(seed: int, groups: int, rows: int, inputs: int) -> tuple[Array, Array]:
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(groups, inputs, inputs))
    given = np.maximum(rng.normal(size=(groups, 60, inputs)) @ mix, 0)
    covariance = grouped_damped(given.transpose(0, 2, 1) @ given / 60, 0.01)
    return rng.normal(size=(groups, rows, inputs)), covariance


def on_grid(groups: Array, columns: Array, values: Array) -> Array:
    return np.clip(np.rint(values), -1, 1)


@pytest.mark.parametrize("shape", SHAPES)
@given(seeds)
@settings(deadline=None, max_examples=20)
def test_descent_never_raises_the_error(shape: tuple[int, int, int], seed: int) -> None:
    matrix, covariance = problem(seed, *shape)
    start = on_grid(np.zeros(1), np.zeros(1), matrix)
    errors = [grouped_error(matrix, start, covariance)]
    for passes in (1, 3):
        found = coordinate_descent(matrix, start, covariance, on_grid, passes)
        assert np.isin(found, [-1, 0, 1]).all()
        errors.append(grouped_error(matrix, found, covariance))
    assert errors[1] <= errors[0] + 1e-12
    assert errors[2] <= errors[1] + 1e-12


@pytest.mark.parametrize("shape", SHAPES)
def test_no_single_value_could_be_better_in_the_end(shape: tuple[int, int, int]) -> None:
    matrix, covariance = problem(7, *shape)
    found = coordinate_descent(matrix, np.zeros(shape), covariance, on_grid, passes=30)
    least = grouped_error(matrix, found, covariance)
    rng = np.random.default_rng(1)
    for _ in range(40):
        moved = found.copy()
        moved[tuple(rng.integers(0, n) for n in shape)] = rng.integers(-1, 2)
        assert grouped_error(matrix, moved, covariance) >= least - 1e-12


@pytest.mark.parametrize("shape", SHAPES)
def test_descent_improves_on_a_sweep(shape: tuple[int, int, int]) -> None:
    matrix, covariance = problem(3, *shape)
    swept = grouped_error_feedback(matrix, covariance, on_grid)
    found = coordinate_descent(matrix, swept, covariance, on_grid, passes=2)
    assert grouped_error(matrix, found, covariance) < grouped_error(matrix, swept, covariance)


@given(seeds, st.integers(1, 6), st.integers(1, 3))
@settings(deadline=None)
def test_a_refit_of_few_entries_equals_the_exact_solution(
    seed: int, clusters: int, groups: int
) -> None:
    matrix, covariance = problem(seed, groups, 5, 9)
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, clusters, matrix.shape)
    scales = rng.uniform(0.5, 2, matrix.shape[:2])
    parts = []
    for g in range(groups):
        root = np.linalg.cholesky(covariance[g])
        for i in range(5):
            parts.append(scales[g, i] * root.T @ np.eye(clusters)[codes[g, i]])
    target = np.concatenate(
        [(matrix[g] @ np.linalg.cholesky(covariance[g])).ravel() for g in range(groups)]
    )
    system = np.concatenate(parts)
    exact = np.linalg.lstsq(system, target, rcond=None)[0]
    refit = codebook_refit(matrix, codes, rng.uniform(1, 2, clusters), covariance, scales)
    used = np.bincount(codes.ravel(), minlength=clusters) > 0
    np.testing.assert_allclose(refit[used], exact[used], atol=1e-3)


def test_a_zero_and_an_unused_entry_stay() -> None:
    matrix, covariance = problem(1, 1, 5, 12)
    codes = np.random.default_rng(2).integers(0, 3, matrix.shape)
    refit = codebook_refit(matrix, codes, np.array([-1.0, 0, 1, 7]), covariance, np.ones((1, 5)))
    assert refit[1] == 0
    assert refit[3] == 7
    assert refit[0] != -1
    with pytest.raises(ValueError, match=r"\[0, 2\)"):
        codebook_refit(matrix, codes, np.array([0.0, 1]), covariance, np.ones((1, 5)))


@pytest.mark.parametrize("groups", [1, 40])
def test_some_rows_tell_the_entries_of_a_large_layer(groups: int) -> None:
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(groups, 40000 // groups, 16))
    covariance = np.stack([np.eye(16)] * groups)
    codes = (matrix > 0).astype(np.int64)
    refit = codebook_refit(
        matrix, codes, np.array([-1.0, 1]), covariance, np.ones(matrix.shape[:2])
    )
    half_normal = np.sqrt(2 / np.pi)
    np.testing.assert_allclose(refit, [-half_normal, half_normal], atol=0.01)
