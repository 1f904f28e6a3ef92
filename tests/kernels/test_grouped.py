from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from onnxslim_tk.kernels.grouped import (
    feedback_variances,
    grouped_error,
    grouped_error_feedback,
    grouped_masked_refit,
)
from onnxslim_tk.kernels.least_squares import masked_refit, relative_error
from onnxslim_tk.kernels.rounding import error_feedback

Floats = NDArray[np.float64]
SIZES = st.tuples(st.integers(1, 6), st.integers(1, 5), st.integers(1, 12), st.integers(0, 99))


def layer(groups: int, rows: int, inputs: int, seed: int) -> tuple[Floats, Floats]:
    """A weight, and covariances of inputs that go together."""
    rng = np.random.default_rng(seed)
    factors = rng.standard_normal((groups, inputs, 2 * inputs)) + rng.standard_normal((inputs, 1))
    covariance = factors @ factors.transpose(0, 2, 1) / inputs
    return rng.standard_normal((groups, rows, inputs)), covariance


def coarse(_groups: NDArray[Any], _columns: NDArray[Any], values: Floats) -> Floats:
    return np.rint(values)


@given(SIZES)
def test_one_group_has_the_error_of_a_plain_matrix(sizes: tuple[int, int, int, int]) -> None:
    weights, covariance = layer(1, *sizes[1:])
    rounded = np.rint(weights)
    expected = relative_error(weights[0], rounded[0], covariance[0])
    assert grouped_error(weights, rounded, covariance) == pytest.approx(expected)


def test_a_layer_without_output_has_no_error_until_it_changes() -> None:
    nothing = np.zeros((2, 3, 4))
    assert grouped_error(nothing, nothing) == 0
    assert grouped_error(nothing, nothing + 1) == np.inf


@given(SIZES)
@settings(deadline=None)
def test_narrow_groups_are_refitted_as_wide_ones_are(sizes: tuple[int, int, int, int]) -> None:
    weights, covariance = layer(*sizes)
    mask = np.random.default_rng(sizes[3] + 1).random(weights.shape) < 0.6
    together = grouped_masked_refit(weights, mask, covariance)
    parts = zip(weights, mask, covariance, strict=True)
    one_by_one = [masked_refit(*part, iterations=200) for part in parts]
    assert not together[~mask].any()
    np.testing.assert_allclose(together, np.stack(one_by_one), atol=1e-5)


@given(SIZES)
@settings(deadline=None)
def test_narrow_groups_are_swept_as_wide_ones_are(sizes: tuple[int, int, int, int]) -> None:
    weights, covariance = layer(*sizes)
    together = grouped_error_feedback(3 * weights, covariance, coarse)
    one_by_one = [
        error_feedback(3 * w, c, lambda _, values: np.rint(values))
        for w, c in zip(weights, covariance, strict=True)
    ]
    np.testing.assert_array_equal(together, np.stack(one_by_one))


def test_a_sweep_tells_which_groups_and_columns_it_rounds() -> None:
    weights, covariance = layer(4, 3, 5, seed=7)
    keep = np.random.default_rng(8).random(weights.shape) < 0.5

    def masked(groups: NDArray[Any], columns: NDArray[Any], values: Floats) -> Floats:
        return np.where(keep[groups, :, columns], values, 0.0)

    swept = grouped_error_feedback(weights, covariance, masked)
    assert np.array_equal(swept != 0, keep)


@pytest.mark.parametrize(("groups", "rows", "inputs"), [(1, 400, 24), (30, 40, 9), (2, 200, 70)])
def test_variances_foretell_the_error_after_feedback(groups: int, rows: int, inputs: int) -> None:
    weights, covariance = layer(groups, rows, inputs, seed=3)
    fine = 8 * weights
    swept = grouped_error_feedback(fine, covariance, coarse)
    noise = float(
        np.einsum("gri,gi->", (fine - np.rint(fine)) ** 2, feedback_variances(covariance))
    )
    power = float(np.einsum("gri,gij,grj->", fine, covariance, fine))
    assert noise / power == pytest.approx(grouped_error(fine, swept, covariance), rel=0.15)
