from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from onnxslim_tk.kernels.least_squares import masked_refit, relative_error
from onnxslim_tk.kernels.sparsity import (
    alternating_mask,
    block_mask,
    magnitude_mask,
    magnitude_threshold,
    pattern_mask,
    relative_scores,
    swept_mask,
)

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


@given(st.integers(1, 9), st.integers(1, 20), st.integers(1, 8), st.data())
def test_a_pattern_keeps_so_many_of_so_many(
    rows: int, inputs: int, of: int, data: st.DataObject
) -> None:
    keep = data.draw(st.integers(1, of))
    scores = np.abs(np.random.default_rng(rows).normal(size=(rows, inputs)))
    mask = pattern_mask(scores, keep, of)
    whole = inputs // of * of
    assert (mask[:, :whole].reshape(rows, -1, of).sum(-1) == keep).all()
    assert mask[:, whole:].all()
    for kept, values in zip(
        mask[:, :whole].reshape(-1, of), scores[:, :whole].reshape(-1, of), strict=True
    ):
        assert values[kept].min() >= values[~kept].max(initial=0)


@given(st.integers(1, 6), st.integers(1, 20), st.integers(1, 7))
def test_blocks_go_and_stay_as_one(rows: int, inputs: int, width: int) -> None:
    scores = np.abs(np.random.default_rng(inputs).normal(size=(rows, inputs)))
    mask = block_mask(scores, 0.5, width)
    assert mask.shape == scores.shape
    count = 0
    for first in range(0, inputs, width):
        part = mask[:, first : first + width]
        assert (part.all(1) | ~part.any(1)).all()
        count += int(np.count_nonzero(~part.any(1)))
    assert count == round(0.5 * rows * -(-inputs // width))


def test_rows_of_small_weights_lose_no_more_than_others() -> None:
    matrix = np.random.default_rng(1).normal(size=(40, 60)) * np.geomspace(1e-3, 1, 40)[:, None]
    zeros = (~magnitude_mask(relative_scores(matrix), 0.5)).mean(1)
    assert zeros.min() > 0.3
    assert zeros.max() < 0.7


def test_what_an_input_brings_counts() -> None:
    matrix = np.ones((3, 4))
    mask = magnitude_mask(relative_scores(matrix, np.array([4.0, 1.0, 9.0, 0.0])), 0.5)
    assert mask.tolist() == [[True, False, True, False]] * 3


def test_a_swept_mask_spares_what_no_other_weight_can_stand_in_for() -> None:
    # The first two inputs are nearly the same, the third is alone.
    covariance = np.array([[1.0, 0.99, 0.0], [0.99, 1.0, 0.0], [0.0, 0.0, 1.0]])
    matrix = np.array([[1.0, 1.0, 0.6]])
    mask = swept_mask(matrix, covariance, lambda s: pattern_mask(s, 2, 3), 0.0)
    assert mask[0, 2]
    assert pattern_mask(np.abs(matrix), 2, 3).tolist() == [[True, True, False]]


@given(st.integers(0, 2**16), st.sampled_from([4, 7, 64]))
def test_a_swept_mask_keeps_about_its_share_and_bears_a_refit(seed: int, block: int) -> None:
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(400, 8)) @ rng.normal(size=(8, 32)) + 0.1 * rng.normal(size=(400, 32))
    covariance, matrix = inputs.T @ inputs / 400, rng.normal(size=(24, 32))
    swept = swept_mask(matrix, covariance, lambda s: magnitude_mask(s, 0.5), block=block)
    assert 0.4 < swept.mean() < 0.6
    error = relative_error(matrix, np.where(swept, matrix, 0.0), covariance)
    refitted = relative_error(matrix, masked_refit(matrix, swept, covariance), covariance)
    assert refitted < error


@given(st.integers(0, 2**16))
def test_an_alternating_mask_keeps_its_share_and_beats_magnitudes(seed: int) -> None:
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(400, 8)) @ rng.normal(size=(8, 32)) + 0.1 * rng.normal(size=(400, 32))
    covariance, matrix = inputs.T @ inputs / 400, rng.normal(size=(24, 32))
    found = alternating_mask(matrix[None], covariance[None], lambda s: magnitude_mask(s, 0.5))[0]
    assert np.count_nonzero(~found) == matrix.size // 2
    errors = [
        relative_error(matrix, masked_refit(matrix, mask, covariance), covariance)
        for mask in (found, magnitude_mask(relative_scores(matrix), 0.5))
    ]
    assert errors[0] < 0.95 * errors[1]


def test_an_alternating_mask_spares_what_no_other_weight_can_stand_in_for() -> None:
    covariance = np.array([[[1.0, 0.99, 0.0], [0.99, 1.0, 0.0], [0.0, 0.0, 1.0]]])
    matrix = np.array([[[1.0, 1.0, 0.6]]])
    mask = alternating_mask(matrix, covariance, lambda s: pattern_mask(s, 2, 3), 0.0)
    assert mask[0, 0, 2]


def test_an_alternating_mask_counts_quiet_groups_like_others() -> None:
    rng = np.random.default_rng(3)
    matrix = rng.normal(size=(12, 20, 9))
    covariance = np.stack([np.eye(9)] * 12) * np.geomspace(1e-9, 1, 12)[:, None, None]
    mask = alternating_mask(matrix, covariance, lambda s: magnitude_mask(s, 0.5))
    assert mask.mean((1, 2)).min() > 0.2
    assert mask.mean((1, 2)).max() < 0.8


def test_an_alternating_mask_bears_inputs_that_are_never_there() -> None:
    matrix, covariance = np.ones((1, 2, 4)), np.zeros((1, 4, 4))
    mask = alternating_mask(matrix, covariance, lambda s: magnitude_mask(s, 0.5))
    assert np.count_nonzero(mask) == 4
