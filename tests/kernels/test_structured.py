from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.linalg import block_diag, circulant, hankel, toeplitz

from onnxslim_tk.kernels.least_squares import relative_error
from onnxslim_tk.kernels.structured import (
    block_index,
    circulant_index,
    hankel_index,
    kronecker,
    spread,
    tied,
    toeplitz_index,
)

Array = NDArray[Any]
seeds = st.integers(0, 2**32 - 1)
sides = st.integers(1, 9)
INDICES: list[Callable[[int, int], Array]] = [toeplitz_index, hankel_index, circulant_index]


def covariance_of(size: int, seed: int = 3) -> Array:
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(200, size)) @ rng.normal(size=(size, size))
    return np.asarray(inputs.T @ inputs / 200 + 0.1 * np.eye(size))


@given(sides, sides, seeds)
def test_indices_say_what_scipy_says(rows: int, inputs: int, seed: int) -> None:
    values = np.random.default_rng(seed).normal(size=rows + inputs - 1)
    first = toeplitz(values[inputs - 1 :], values[inputs - 1 :: -1])
    assert (spread(values, toeplitz_index(rows, inputs)) == first).all()
    second = hankel(values[:rows], values[rows - 1 :])
    assert (spread(values, hankel_index(rows, inputs)) == second).all()
    ring = values[: max(rows, inputs)]
    expected = circulant(ring)[:rows, :inputs]
    assert (spread(ring, circulant_index(rows, inputs)) == expected).all()


def test_blocks_lie_on_the_diagonal() -> None:
    values = np.arange(1.0, 13.0)
    parts = values.reshape(2, 2, 3)
    assert (spread(values, block_index(4, 6, 2)) == block_diag(*parts)).all()
    with pytest.raises(ValueError, match="block_index: 4 blocks must divide 4 x 6"):
        block_index(4, 6, 4)


@pytest.mark.parametrize("make", INDICES)
@pytest.mark.parametrize("sampled", [False, True])
def test_a_matrix_that_has_the_structure_is_met(
    make: Callable[[int, int], Array], sampled: bool
) -> None:
    index = make(12, 20)
    values = np.random.default_rng(1).normal(size=index.max() + 1)
    found = tied(spread(values, index), index, covariance_of(20) if sampled else None)
    np.testing.assert_allclose(found, values, atol=1e-6)


@pytest.mark.parametrize("index", [make(12, 20) for make in INDICES] + [block_index(12, 20, 4)])
def test_no_other_values_err_less(index: Array) -> None:
    rng = np.random.default_rng(2)
    matrix, covariance = rng.normal(size=(12, 20)), covariance_of(20)
    found = tied(matrix, index, covariance, 0.0)
    least = relative_error(matrix, spread(found, index), covariance)
    plain = relative_error(matrix, spread(tied(matrix, index), index), covariance)
    assert least < plain
    for _ in range(20):
        moved = found + 0.01 * rng.normal(size=found.shape)
        assert least <= relative_error(matrix, spread(moved, index), covariance)


@given(seeds, st.integers(1, 4), st.booleans())
def test_a_sum_of_kronecker_products_is_met(seed: int, terms: int, sampled: bool) -> None:
    rng = np.random.default_rng(seed)
    first, second = rng.normal(size=(terms, 2, 3)), rng.normal(size=(terms, 4, 5))
    matrix = sum(np.kron(a, b) for a, b in zip(first, second, strict=True))
    found = kronecker(np.asarray(matrix), (2, 3), terms, covariance_of(15) if sampled else None)
    assert [part.shape for part in found] == [(terms, 2, 3), (terms, 4, 5)]
    whole = sum(np.kron(a, b) for a, b in zip(*found, strict=True))
    np.testing.assert_allclose(whole, matrix, atol=1e-6)
