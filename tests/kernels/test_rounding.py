from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from onnxslim_tk.kernels.least_squares import damped, relative_error
from onnxslim_tk.kernels.rounding import error_feedback, symmetric_scales, to_grid

Array = NDArray[Any]

seeds = st.integers(0, 2**32 - 1)
widths = st.integers(2, 8)


def squared(matrix: Array, scales: Array, bits: int) -> Array:
    change: Array = matrix - to_grid(matrix, scales, bits) * scales[:, None]
    return np.asarray((change**2).sum(1))


@given(seeds, widths)
def test_the_search_never_loses_to_the_largest_magnitude(seed: int, bits: int) -> None:
    matrix = np.random.default_rng(seed).standard_t(3, (6, 30))
    plain = symmetric_scales(matrix, bits, search=False)
    found = symmetric_scales(matrix, bits)
    top = 2 ** (bits - 1) - 1
    np.testing.assert_allclose(plain * top, np.abs(matrix).max(1))
    assert (found > 0).all()
    assert (squared(matrix, found, bits) <= squared(matrix, plain, bits) * (1 + 1e-9)).all()


def test_the_search_gains_much_with_few_bits() -> None:
    matrix = np.random.default_rng(0).normal(size=(100, 900))
    plain, found = (squared(matrix, symmetric_scales(matrix, 4, s), 4).sum() for s in (False, True))
    assert found < 0.75 * plain


def test_columns_count_as_much_as_their_weights_say() -> None:
    matrix = np.array([[8.0, 0.5, 0.3, -0.4]])
    blind = symmetric_scales(matrix, 3, weights=np.array([0.0, 1.0, 1.0, 1.0]))
    assert blind[0] < symmetric_scales(matrix, 3, weights=np.array([1.0, 0.0, 0.0, 0.0]))[0]


def test_a_row_of_zeros_gets_a_safe_scale() -> None:
    matrix = np.array([[0.0, 0.0], [1e-300, 0.0], [1e-36, 0.0], [1.0, -2.0]])
    for search in (False, True):
        scales = symmetric_scales(matrix, search=search)
        assert scales[:2].tolist() == [1, 1]
        assert (scales.astype(np.float32) > 0).all()
    assert symmetric_scales(np.zeros((0, 3))).shape == (0,)
    assert symmetric_scales(np.zeros((2, 0))).tolist() == [1, 1]


@given(seeds, widths)
def test_codes_are_the_nearest_points_of_the_grid(seed: int, bits: int) -> None:
    matrix = np.random.default_rng(seed).normal(size=(4, 20))
    scales = symmetric_scales(matrix, bits, search=False)
    codes = to_grid(matrix, scales, bits)
    top = 2 ** (bits - 1) - 1
    assert codes.dtype == np.int8
    assert np.abs(codes).max() == top
    assert (np.abs(matrix - codes * scales[:, None]) <= scales[:, None] / 2 * (1 + 1e-9)).all()
    assert np.abs(to_grid(1e9 * matrix, scales, bits)).max() == top


@pytest.mark.parametrize("bits", [1, 9])
def test_refuses_other_widths(bits: int) -> None:
    with pytest.raises(ValueError, match=f"got {bits}"):
        symmetric_scales(np.ones((1, 1)), bits)
    with pytest.raises(ValueError, match=f"got {bits}"):
        to_grid(np.ones((1, 1)), np.ones(1), bits)


@pytest.mark.parametrize("block", [1, 7, 64])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_error_feedback_lowers_the_error_of_the_output(bits: int, block: int) -> None:
    rng = np.random.default_rng(bits)
    inputs = np.maximum(rng.normal(size=(500, 40)) @ rng.normal(size=(40, 40)), 0)
    covariance = inputs.T @ inputs / 500
    matrix = rng.normal(size=(16, 40))
    scales = symmetric_scales(matrix, bits)
    plain = to_grid(matrix, scales, bits) * scales[:, None]
    swept = error_feedback(
        matrix,
        covariance,
        lambda _, column: to_grid(column[:, None], scales, bits)[:, 0] * scales,
        block=block,
    )
    codes = swept / scales[:, None]
    np.testing.assert_allclose(codes, np.rint(codes), atol=1e-9)
    assert relative_error(matrix, swept, covariance) < 0.8 * relative_error(
        matrix, plain, covariance
    )


@given(seeds, st.integers(1, 9))
def test_the_columns_to_come_take_the_best_values(seed: int, block: int) -> None:
    # Once one column is fixed, the rest has a closed form; no later column is rounded here.
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(9, 6))
    covariance = root.T @ root
    matrix = rng.normal(size=(3, 6))
    first = int(np.argmax(np.diag(covariance)))
    swept = error_feedback(
        matrix,
        covariance,
        lambda j, column: np.zeros_like(column) if j == first else column,
        block=block,
    )
    rest = np.delete(np.arange(6), first)
    normal = damped(covariance, 0.01)
    repair = np.linalg.solve(normal[np.ix_(rest, rest)], normal[rest, first])
    np.testing.assert_allclose(swept[:, first], 0)
    expected = matrix[:, rest] + np.outer(matrix[:, first], repair)
    np.testing.assert_allclose(swept[:, rest], expected, atol=1e-7)


def test_inputs_that_are_never_active_do_no_harm() -> None:
    matrix = np.array([[0.4, 1.6], [-0.6, 2.4]])
    for covariance in (np.zeros((2, 2)), np.diag([1.0, 0.0])):
        swept = error_feedback(matrix, covariance, lambda _, column: np.rint(column))
        np.testing.assert_array_equal(swept, np.rint(matrix))
    with pytest.raises(np.linalg.LinAlgError):
        error_feedback(matrix, -np.eye(2), lambda _, column: column)


def searched(matrix: Array, bits: int, columns: Array) -> Array:
    """The scales by trying every step for every row, in one piece."""
    top = 2 ** (bits - 1) - 1
    widest = symmetric_scales(matrix, bits, search=False)
    tried = widest[:, None] * np.linspace(1.0, 0.2, 33)
    ratio = np.clip(np.rint(matrix[:, None] / tried[..., None]), -top, top) * tried[..., None]
    errors = np.square(ratio - matrix[:, None]) @ columns
    return np.asarray(tried[np.arange(len(matrix)), errors.argmin(1)])


@given(seeds, widths, st.integers(1, 40), st.integers(1, 4), st.booleans())
def test_blocks_that_stop_early_find_what_the_whole_search_finds(
    seed: int, bits: int, chunk: int, blocks: int, turned: bool
) -> None:
    rng = np.random.default_rng(seed)
    matrix = rng.standard_t(3, (24, 7)).astype(np.float32)
    matrix = np.asfortranarray(matrix) if turned else matrix
    columns = rng.uniform(0.1, 1, 7)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("onnxslim_tk.kernels.rounding._CHUNK", chunk)
        patch.setattr("onnxslim_tk.kernels.rounding._BLOCKS", blocks)
        scales = symmetric_scales(matrix, bits, weights=columns)
        codes = to_grid(matrix, scales, bits)
    wide = matrix.astype(np.float64)
    np.testing.assert_allclose(scales, searched(wide, bits, columns), rtol=1e-12)
    top = 2 ** (bits - 1) - 1
    np.testing.assert_array_equal(codes, np.clip(np.rint(wide / scales[:, None]), -top, top))
