from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from onnxslim_tk.kernels.sparsity import magnitude_mask, magnitude_threshold

Array = NDArray[Any]

matrices = hnp.arrays(
    np.float64, hnp.array_shapes(min_dims=1, max_dims=3, max_side=8), elements=st.integers(-3, 3)
)


@given(matrices, st.floats(0, 1))
def test_drops_exactly_the_share_and_nothing_larger_than_what_stays(
    matrix: Array, sparsity: float
) -> None:
    keep = magnitude_mask(matrix, sparsity)
    assert keep.shape == matrix.shape
    assert np.count_nonzero(~keep) == round(sparsity * matrix.size)
    dropped, kept = np.abs(matrix[~keep]), np.abs(matrix[keep])
    assert dropped.max(initial=0) <= kept.min(initial=np.inf)


def test_drops_the_first_of_equal_weights() -> None:
    mask = magnitude_mask(np.array([[2.0, -1.0, 1.0], [1.0, 0.5, -1.0]]), 0.5)
    assert mask.tolist() == [[True, False, False], [True, False, True]]


@given(st.lists(matrices, min_size=1, max_size=3), st.floats(0, 1))
def test_threshold_reaches_the_share_over_all_tensors(
    tensors: list[Array], sparsity: float
) -> None:
    threshold = magnitude_threshold(tensors, sparsity)
    magnitudes = np.abs(np.concatenate([tensor.ravel() for tensor in tensors]))
    wanted = round(sparsity * len(magnitudes))
    assert np.count_nonzero(magnitudes <= threshold) >= wanted
    if threshold > 0:
        assert np.count_nonzero(magnitudes < threshold) < wanted


def test_the_least_integer_counts_as_large() -> None:
    assert magnitude_mask(np.array([-128, 1], np.int8), 0.5).tolist() == [True, False]


@pytest.mark.parametrize("sparsity", [-0.1, 1.2, float("nan")])
def test_refuses_an_impossible_sparsity(sparsity: float) -> None:
    with pytest.raises(ValueError, match="sparsity must be in"):
        magnitude_mask(np.ones(3), sparsity)
    with pytest.raises(ValueError, match="sparsity must be in"):
        magnitude_threshold([np.ones(3)], sparsity)
