"""Closed-form repairs for all groups of a layer: weights ``(groups, rows, inputs)``.

Covariances are ``(groups, inputs, inputs)``. Depthwise layers have hundreds of groups of nine
inputs, so groups of few inputs are worked on together and only wide ones one by one.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxslim_tk.kernels.least_squares import damped, masked_refit
from onnxslim_tk.kernels.rounding import error_feedback

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]
RoundColumn = Callable[[Indices, Indices, Floats], NDArray[Any]]
FEW_INPUTS = 64
"""Groups of at most so many inputs are worked on together."""
_CHUNK = 1 << 21


def grouped_error(matrix: Floats, replaced: Floats, covariance: Floats | None = None) -> float:
    """``tr(dW C dW^T) / tr(W C W^T)`` over all groups, with ``dW = W - W'``.

    Where a layer has no output at all the result is 0 for no change and infinity for any.
    """
    noise, power = (_energy(part, covariance) for part in (matrix - replaced, matrix))
    if power > 0:
        return noise / power
    return float("inf") if noise > 0 else 0.0


def grouped_damped(covariance: Floats, damping: float) -> Floats:
    """Every group's covariance, :func:`~onnxslim_tk.kernels.least_squares.damped`."""
    return np.stack([damped(c, damping) for c in covariance])


def grouped_masked_refit(
    matrix: Floats,
    mask: NDArray[np.bool_],
    covariance: Floats,
    damping: float = 0.01,
    iterations: int = 40,
) -> Floats:
    """Best weights that are zero where ``mask`` is False, under each group's covariance.

    Groups of at most 64 inputs are solved exactly, row by row; others as
    :func:`~onnxslim_tk.kernels.least_squares.masked_refit` does.
    """
    groups, rows, inputs = matrix.shape
    if groups == 1 or inputs > FEW_INPUTS:
        parts = zip(matrix, mask, covariance, strict=True)
        return np.stack([masked_refit(w, m, c, damping, iterations) for w, m, c in parts])
    result = np.zeros_like(matrix)
    step = max(1, _CHUNK // (rows * inputs * inputs))
    for first in range(0, groups, step):
        part = slice(first, first + step)
        keep = mask[part]
        normal = grouped_damped(covariance[part], damping)
        target = np.where(keep, matrix[part] @ normal, 0.0)
        both = keep[..., :, None] & keep[..., None, :]
        system = np.where(both, normal[:, None], 0.0)
        diagonal = np.arange(inputs)
        system[..., diagonal, diagonal] = np.where(keep, system[..., diagonal, diagonal], 1.0)
        result[part] = np.linalg.solve(system, target[..., None])[..., 0]
    return np.where(mask, result, 0.0)


def grouped_error_feedback(
    matrix: Floats, covariance: Floats, round_column: RoundColumn, damping: float = 0.01
) -> Floats:
    """Round column after column; the columns to come make up for the error so far.

    ``round_column(groups (k,), columns (k,), values (k, rows))`` gives the rounded values of one
    column of each of k groups. GPTQ (Frantar et al., 2022), columns in the order of falling
    ``diag(C)``. Raises numpy.linalg.LinAlgError if a damped covariance isn't positive definite.
    """
    groups, _, inputs = matrix.shape
    if groups == 1 or inputs > FEW_INPUTS:
        return np.stack(
            [
                error_feedback(weights, covariance[g], _of_group(round_column, g), damping)
                for g, weights in enumerate(matrix)
            ]
        )
    order, root = _sweep(covariance, damping)
    spread = np.linalg.inv(root)
    every = np.arange(groups)
    pending = np.take_along_axis(matrix, order[:, None, :], axis=2)
    for k in range(inputs):
        rounded = np.asarray(round_column(every, order[:, k], pending[:, :, k]), np.float64)
        error = (pending[:, :, k] - rounded) / spread[:, k, k, None]
        pending[:, :, k] = rounded
        pending[:, :, k + 1 :] -= error[:, :, None] * spread[:, None, k, k + 1 :]
    result = np.empty_like(matrix)
    np.put_along_axis(result, order[:, None, :], pending, axis=2)
    return result


def feedback_variances(covariance: Floats, damping: float = 0.01) -> Floats:
    """What a squared rounding error costs after error feedback: ``(groups, inputs)``.

    It is the variance that an input keeps once those that the sweep rounds later are known, since
    they make up for the rest; ``diag(C)`` is the cost without feedback.
    """
    if len(covariance) > 1 and covariance.shape[1] > FEW_INPUTS:
        # One by one: a wide group's covariance alone can take half a gigabyte.
        return np.concatenate([feedback_variances(c[None], damping) for c in covariance])
    order, root = _sweep(covariance, damping)
    kept = np.diagonal(root, axis1=1, axis2=2) ** 2
    variances = np.empty_like(kept)
    np.put_along_axis(variances, order, kept, axis=1)
    return variances


def _sweep(covariance: Floats, damping: float) -> tuple[Indices, Floats]:
    """The order of columns, and the upper triangular V with ``V V^T = C`` in that order."""
    normal = grouped_damped(covariance, damping)
    diagonals = np.diagonal(normal, axis1=1, axis2=2)
    order = np.argsort(-diagonals, axis=1, kind="stable").astype(np.int64, copy=False)
    sorted_rows = np.take_along_axis(normal, order[:, :, None], axis=1)
    permuted = np.take_along_axis(sorted_rows, order[:, None, :], axis=2)
    root = np.linalg.cholesky(permuted[:, ::-1, ::-1])[:, ::-1, ::-1]
    return order, np.asarray(root, np.float64)


def _of_group(round_column: RoundColumn, group: int) -> Callable[[int, Floats], NDArray[Any]]:
    groups = np.array([group])

    def rounded(column: int, values: Floats) -> NDArray[Any]:
        return np.asarray(round_column(groups, np.array([column]), values[None])[0])

    return rounded


def _energy(matrix: Floats, covariance: Floats | None) -> float:
    product = matrix if covariance is None else matrix @ covariance
    return max(float(np.vdot(product, matrix)), 0.0)
