from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from onnxslim_tk.kernels.least_squares import (
    compensated,
    damped,
    masked_refit,
    mean_shift,
    refit_columns,
    relative_error,
    shrinkage,
)

Array = NDArray[Any]

seeds = st.integers(0, 2**32 - 1)


def problem(seed: int, rows: int = 5, width: int = 12) -> tuple[Array, Array]:
    rng = np.random.default_rng(seed)
    inputs = np.maximum(rng.normal(size=(60, width)) + 0.3, 0) * np.geomspace(1, 0.1, width)
    return rng.normal(size=(rows, width)), inputs.T @ inputs / 60


def solve_rows(matrix: Array, mask: Array, normal: Array) -> Array:
    result = np.zeros_like(matrix)
    for row, keep, out in zip(matrix, mask, result, strict=True):
        out[keep] = np.linalg.solve(normal[np.ix_(keep, keep)], normal[keep] @ row)
    return result


@given(seeds, st.floats(0, 1))
def test_masked_refit_equals_the_exact_solution_of_every_row(seed: int, share: float) -> None:
    matrix, covariance = problem(seed)
    mask = np.random.default_rng(seed).random(matrix.shape) < share
    refit = masked_refit(matrix, mask, covariance)
    assert not refit[~mask].any()
    exact = solve_rows(matrix, mask, damped(covariance, 0.01))
    np.testing.assert_allclose(refit, exact, atol=1e-6)


@given(seeds, st.integers(0, 6))
def test_masked_refit_may_stop_at_any_iteration(seed: int, iterations: int) -> None:
    matrix, covariance = problem(seed)
    mask = np.random.default_rng(seed).random(matrix.shape) < 0.5
    normal = damped(covariance, 0.01)
    errors = [
        relative_error(matrix, masked_refit(matrix, mask, covariance, iterations=k), normal)
        for k in (iterations, iterations + 1)
    ]
    assert errors[1] <= errors[0] + 1e-12
    assert errors[0] <= relative_error(matrix, matrix * mask, normal) + 1e-12


def test_masked_refit_leaves_what_needs_no_repair() -> None:
    matrix, covariance = problem(0)
    full = np.ones(matrix.shape, np.bool_)
    np.testing.assert_allclose(masked_refit(matrix, full, covariance), matrix)
    assert not masked_refit(matrix, ~full, covariance).any()
    mask = np.eye(5, 12, dtype=np.bool_)
    silent = masked_refit(matrix, mask, np.zeros((12, 12)))
    np.testing.assert_allclose(silent, matrix * mask)
    with pytest.raises(ValueError, match="mask must have shape"):
        masked_refit(matrix, mask[:, 1:], covariance)


@given(seeds, st.sets(st.integers(0, 11)))
def test_refit_columns_equals_a_mask_of_whole_columns(seed: int, chosen: set[int]) -> None:
    matrix, covariance = problem(seed)
    kept = np.array(sorted(chosen, reverse=True), np.int64)
    mask = np.zeros(matrix.shape, np.bool_)
    mask[:, kept] = True
    exact = solve_rows(matrix, mask, damped(covariance, 1e-3))[:, kept]
    np.testing.assert_allclose(refit_columns(matrix, kept, covariance), exact, atol=1e-7)


def test_refit_columns_moves_a_copy_to_its_twin() -> None:
    inputs = np.random.default_rng(0).normal(size=(50, 3))[:, [0, 1, 2, 0]]
    refit = refit_columns(
        np.array([[1.0, 2.0, 3.0, 4.0]]), np.array([0, 1, 2]), inputs.T @ inputs, 1e-12
    )
    np.testing.assert_allclose(refit, [[5, 2, 3]], atol=1e-6)


@pytest.mark.parametrize("kept", [[0, 0], [12], [-1]])
def test_refit_columns_refuses_impossible_columns(kept: list[int]) -> None:
    matrix, covariance = problem(0)
    with pytest.raises(ValueError, match="different indices below 12"):
        refit_columns(matrix, np.array(kept), covariance)


def test_refit_columns_says_when_it_cannot_solve() -> None:
    with pytest.raises(np.linalg.LinAlgError):
        refit_columns(np.ones((1, 2)), np.array([0, 1]), -np.eye(2))


@given(seeds)
def test_mean_shift_keeps_the_mean_output(seed: int) -> None:
    rng = np.random.default_rng(seed)
    matrix, inputs = rng.normal(size=(4, 6)), rng.normal(1, 1, (30, 6))
    replaced = np.round(matrix)
    shift = mean_shift(matrix, replaced, inputs.mean(0))
    outputs = inputs @ replaced.T + shift
    np.testing.assert_allclose(outputs.mean(0), (inputs @ matrix.T).mean(0), atol=1e-9)


@pytest.mark.parametrize("count", [10, 40, 400])
def test_shrinkage_brings_an_estimate_nearer_to_the_truth(count: int) -> None:
    rng = np.random.default_rng(count)
    root = rng.normal(size=(20, 20)) * np.geomspace(1, 0.1, 20)
    truth = root @ root.T
    rows = rng.normal(size=(count, 20)) @ root.T
    found = rows.T @ rows / count
    amount = shrinkage(found, count)
    nearer = damped(found, amount) / (1 + amount)
    assert np.linalg.norm(nearer - truth) < np.linalg.norm(found - truth)


def test_shrinkage_falls_with_samples_and_knows_its_ends() -> None:
    covariance = np.diag(np.geomspace(1, 0.01, 8))
    amounts = [shrinkage(covariance, count) for count in (2, 20, 200, 2000)]
    assert amounts == sorted(amounts, reverse=True)
    assert 0 < amounts[-1] < 0.01
    assert shrinkage(np.eye(5), 10) == shrinkage(np.zeros((3, 3)), 10) == 1.0
    assert shrinkage(np.ones((1, 1)), 10) == 1.0


@given(seeds)
def test_relative_error_is_output_noise_over_output_power(seed: int) -> None:
    rng = np.random.default_rng(seed)
    matrix, inputs = rng.normal(size=(4, 6)), rng.normal(size=(30, 6))
    replaced = np.round(matrix)
    power, noise = (((inputs @ part.T) ** 2).sum() for part in (matrix, matrix - replaced))
    measured = relative_error(matrix, replaced, inputs.T @ inputs)
    assert measured == pytest.approx(noise / power)
    plain = ((matrix - replaced) ** 2).sum() / (matrix**2).sum()
    assert relative_error(matrix, replaced) == pytest.approx(plain)


def test_relative_error_of_a_silent_layer() -> None:
    zeros = np.zeros((2, 2))
    assert relative_error(zeros, zeros) == 0
    assert relative_error(zeros, np.ones((2, 2))) == np.inf
    assert relative_error(np.ones((2, 2)), zeros) == 1


def test_damping_adds_a_share_of_the_mean_diagonal() -> None:
    covariance = np.array([[1.0, 0.5], [0.5, 3.0]])
    np.testing.assert_allclose(damped(covariance, 0.1), [[1.2, 0.5], [0.5, 3.2]])
    assert covariance[0, 0] == 1
    assert (np.linalg.cholesky(damped(np.zeros((3, 3)), 0)).diagonal() > 0).all()
    with pytest.raises(ValueError, match="square"):
        damped(np.ones((2, 3)), 0.1)
    with pytest.raises(ValueError, match="negative"):
        damped(covariance, -1)


@given(seeds, st.integers(1, 30), st.booleans())
def test_relative_error_adds_up_over_blocks(seed: int, block: int, weighted: bool) -> None:
    rng = np.random.default_rng(seed)
    matrix, other = rng.normal(size=(2, 9, 4)).astype(np.float32)
    inputs = rng.normal(size=(12, 4))
    covariance = inputs.T @ inputs if weighted else None
    whole = relative_error(matrix, other, covariance)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("onnxslim_tk.kernels.least_squares._BLOCK", block)
        assert relative_error(matrix, other, covariance) == pytest.approx(whole, rel=1e-12)


def pairs(seed: int, noise: float, rows: int = 60) -> tuple[Array, Array, Array]:
    """A weight, inputs as they were, and what has become of them."""
    rng = np.random.default_rng(seed)
    before = np.maximum(rng.normal(size=(rows, 8)) + 0.3, 0)
    mixing = np.eye(8) + 0.1 * rng.normal(size=(8, 8))
    return rng.normal(size=(5, 8)), before, before @ mixing.T + noise * rng.normal(size=(rows, 8))


@given(seeds, st.floats(0, 2), st.floats(0.001, 10))
def test_compensated_weights_are_never_further_from_the_outputs_before(
    seed: int, noise: float, damping: float
) -> None:
    matrix, before, after = pairs(seed, noise)
    count = len(before)
    second, lost = after.T @ after / count, (before - after).T @ after / count
    moved = compensated(matrix, second, lost, damping)

    def error(weights: Array) -> float:
        return float(np.square(before @ matrix.T - after @ weights.T).sum())

    assert error(moved) <= error(matrix) * (1 + 1e-9)


@given(seeds)
def test_compensated_weights_undo_a_change_of_basis(seed: int) -> None:
    matrix, before, after = pairs(seed, 0.0)
    second, lost = after.T @ after / len(before), (before - after).T @ after / len(before)
    moved = compensated(matrix, second, lost, 0.0)
    np.testing.assert_allclose(after @ moved.T, before @ matrix.T, rtol=1e-4, atol=1e-4)


@given(seeds, st.floats(0, 10))
def test_inputs_that_lost_nothing_need_no_compensation(seed: int, damping: float) -> None:
    matrix, covariance = problem(seed)
    np.testing.assert_array_equal(compensated(matrix, covariance, 0 * covariance, damping), matrix)
