from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from onnxslim_tk.kernels.least_squares import damped, relative_error
from onnxslim_tk.kernels.lowrank import factorize

Array = NDArray[Any]

shapes = st.tuples(st.integers(1, 12), st.integers(1, 12))
seeds = st.integers(0, 2**32 - 1)


def problem(shape: tuple[int, int], seed: int) -> tuple[Array, Array]:
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(40, shape[1])) * np.geomspace(1, 0.03, shape[1]) + 0.3
    return rng.normal(size=shape), inputs.T @ inputs / 40


@given(shapes, seeds, st.data())
def test_keeps_the_energy_it_promises(
    shape: tuple[int, int], seed: int, data: st.DataObject
) -> None:
    matrix, covariance = problem(shape, seed)
    rank = data.draw(st.integers(1, min(shape)))
    left, right = factorize(matrix, rank, covariance)
    assert left.shape == (shape[0], rank)
    assert right.shape == (rank, shape[1])
    error = relative_error(matrix, left @ right, damped(covariance, 1e-3))
    # What the discarded singular values of W C^1/2 hold is the least that any factors miss.
    root = np.linalg.cholesky(damped(covariance, 1e-3))
    energies = np.square(np.linalg.svd(matrix @ root, compute_uv=False))
    assert error == pytest.approx(energies[rank:].sum() / energies.sum(), abs=1e-10)


@given(shapes, seeds, st.data())
def test_no_factors_beat_it_where_the_inputs_are(
    shape: tuple[int, int], seed: int, data: st.DataObject
) -> None:
    matrix, covariance = problem(shape, seed)
    rank = data.draw(st.integers(1, min(shape)))
    weighted = damped(covariance, 1e-3)
    left, right = factorize(matrix, rank, covariance)
    error = relative_error(matrix, left @ right, weighted)
    plain_left, plain_right = factorize(matrix, rank)
    assert error <= relative_error(matrix, plain_left @ plain_right, weighted) + 1e-10
    nudge = 1e-3 * np.random.default_rng(seed).normal(size=left.shape)
    assert error <= relative_error(matrix, (left + nudge) @ right, weighted) + 1e-10


@pytest.mark.parametrize("shape", [(8, 5), (5, 8)])
def test_without_a_covariance_it_is_the_svd(shape: tuple[int, int]) -> None:
    matrix, _ = problem(shape, 2)
    u, s, v = np.linalg.svd(matrix, full_matrices=False)
    left, right = factorize(matrix, 3)
    np.testing.assert_allclose(left @ right, (u[:, :3] * s[:3]) @ v[:3], atol=1e-9)
    np.testing.assert_allclose(np.linalg.norm(left, axis=0), np.linalg.norm(right, axis=1))


@pytest.mark.parametrize("shape", [(8, 5), (5, 8)])
def test_is_far_better_than_the_plain_svd_for_skewed_inputs(shape: tuple[int, int]) -> None:
    matrix, covariance = problem(shape, 2)
    errors = [
        relative_error(matrix, np.matmul(*factors), covariance)
        for factors in (factorize(matrix, 3, covariance), factorize(matrix, 3))
    ]
    assert errors[0] < 0.2 * errors[1]


def test_a_rank_beyond_the_true_one_adds_nothing() -> None:
    matrix = np.outer([1.0, 2.0, 3.0], [1.0, 0.0, -1.0, 2.0])
    for wide in (matrix, matrix.T):
        left, right = factorize(wide, 3, np.diag([1.0, 2.0, 0.0, 1.0][: wide.shape[1]]))
        np.testing.assert_allclose(left @ right, wide, atol=1e-9)
        assert np.abs(left).max() < 10
    left, right = factorize(np.zeros((3, 2)), 2)
    assert not (left @ right).any()


def test_refuses_what_cannot_be_factorized() -> None:
    with pytest.raises(ValueError, match="got 0"):
        factorize(np.ones((3, 2)), 0)
    with pytest.raises(ValueError, match="got 3"):
        factorize(np.ones((3, 2)), 3)
    with pytest.raises(np.linalg.LinAlgError):
        factorize(np.ones((3, 2)), 1, -np.eye(2))
