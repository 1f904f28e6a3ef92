"""Closed-form repairs of a weight matrix under the covariance of its inputs.

A layer computes ``W x`` with ``W`` of shape ``(n, d)``; ``C = E[x x^T]`` of shape ``(d, d)`` is the
uncentred covariance of its inputs. Every method minimises ``tr((W - W') C (W - W')^T)``, the mean
squared change of the layer's output, over what may still change.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve

Floats = NDArray[np.float64]
# Smaller than any activation's variance, yet enough for an input that was never active.
_FLOOR = 1e-20
_SETTLED = 1e-20
# Float64 is for so many values at once.
_BLOCK = 1 << 20


def damped(covariance: NDArray[Any], damping: float) -> Floats:
    """``C + (damping * mean(diag C) + 1e-20) I``, of shape ``(d, d)``, which can be inverted.

    Raises ValueError if ``C`` isn't square or ``damping`` is negative.
    """
    matrix = np.array(covariance, np.float64)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"damped: covariance must be square, got shape {matrix.shape}")
    if damping < 0:
        raise ValueError(f"damped: damping must not be negative, got {damping}")
    if len(matrix):
        matrix[np.diag_indices_from(matrix)] += damping * np.trace(matrix) / len(matrix) + _FLOOR
    return matrix


def masked_refit(
    matrix: NDArray[Any],
    mask: NDArray[np.bool_],
    covariance: NDArray[Any],
    damping: float = 0.01,
    iterations: int = 40,
) -> Floats:
    """Best weights ``(n, d)`` that are zero where ``mask`` is False.

    ``matrix`` and ``mask`` are ``(n, d)``, ``covariance`` ``(d, d)``. Conjugate gradients,
    projected on the mask, for all rows together; each iteration lowers the error, so stopping
    early is safe. Raises ValueError if the shapes don't fit.
    """
    weights = np.asarray(matrix, np.float64)
    keep = np.asarray(mask, np.bool_)
    if keep.shape != weights.shape:
        raise ValueError(f"masked_refit: mask must have shape {weights.shape}, got {keep.shape}")
    normal = damped(covariance, damping)
    return _conjugate_gradients(
        lambda rows: np.where(keep, rows @ normal, 0.0),
        np.where(keep, weights @ normal, 0.0),
        np.where(keep, np.diag(normal), 0.0),
        np.where(keep, weights, 0.0),
        iterations,
    )


def refit_columns(
    matrix: NDArray[Any],
    kept: NDArray[np.integer],
    covariance: NDArray[Any],
    damping: float = 1e-3,
) -> Floats:
    """Best weights ``(n, k)`` that read only the inputs ``kept``: ``W C[:, S] C[S, S]^-1``.

    ``matrix`` is ``(n, d)``, ``kept`` holds k different indices below d. Raises ValueError for
    indices that repeat or don't exist, numpy.linalg.LinAlgError if the damped ``C[S, S]`` isn't
    positive definite.
    """
    weights = np.asarray(matrix, np.float64)
    indices = np.asarray(kept, np.int64).ravel()
    inside = (indices >= 0) & (indices < weights.shape[1])
    if not inside.all() or len(np.unique(indices)) < len(indices):
        raise ValueError(f"refit_columns: kept must be different indices below {weights.shape[1]}")
    if not len(indices):
        return np.zeros((len(weights), 0))
    normal = damped(covariance, damping)
    factor = cho_factor(normal[np.ix_(indices, indices)], lower=True, check_finite=False)
    target = weights @ normal[:, indices]
    return np.ascontiguousarray(cho_solve(factor, target.T, check_finite=False).T)


def mean_shift(matrix: NDArray[Any], replaced: NDArray[Any], mean: NDArray[Any]) -> Floats:
    """What to add to the bias, ``(n,)``, so that the mean output stays: ``(W - W') E[x]``.

    ``matrix`` and ``replaced`` are ``(n, d)``, ``mean`` ``(d,)`` (Nagel et al., 2019).
    """
    shift = np.asarray(matrix, np.float64) - np.asarray(replaced, np.float64)
    return np.asarray(shift @ np.asarray(mean, np.float64), np.float64)


def compensated(
    matrix: NDArray[Any], second: NDArray[Any], lost: NDArray[Any], damping: float = 0.01
) -> Floats:
    """Weights ``(n, d)`` that give for inputs ``x`` what ``matrix`` gave for inputs ``r``.

    ``second`` is ``E[x x^T]``, ``lost`` ``E[(r - x) x^T]``, both ``(d, d)``. The damping pulls
    towards ``matrix``, which comes back where nothing is lost. Raises numpy.linalg.LinAlgError if
    the damped ``second`` isn't positive definite.
    """
    weights = np.asarray(matrix, np.float64)
    pull = weights @ np.asarray(lost, np.float64)
    factor = cho_factor(damped(second, damping), lower=True, check_finite=False)
    return np.asarray(weights + cho_solve(factor, pull.T, check_finite=False).T, np.float64)


def shrinkage(covariance: NDArray[Any], count: int) -> float:
    """The damping that a covariance ``(d, d)`` of ``count`` samples needs, in (0, 1].

    It makes the damped one the best estimate of the true covariance, if samples are independent
    and normal: oracle approximating shrinkage (Chen, Wiesel, Eldar and Hero, 2010).
    """
    size = len(covariance)
    whole = float(np.trace(covariance)) ** 2
    squares = float(np.einsum("ij,ij->", covariance, covariance))
    apart = squares - whole / size
    if size < 2 or apart <= 0:
        return 1.0
    share = ((1 - 2 / size) * squares + whole) / ((count + 1 - 2 / size) * apart)
    return 1.0 if share >= 0.5 else share / (1 - share)


def relative_error(
    matrix: NDArray[Any], replaced: NDArray[Any], covariance: NDArray[Any] | None = None
) -> float:
    """``tr(dW C dW^T) / tr(W C W^T)`` with ``dW = W - W'``: output noise over output power.

    ``matrix`` and ``replaced`` are ``(n, d)``; without ``covariance`` it is the identity. Where the
    layer has no output at all the result is 0 for no change and infinity for any.
    """
    normal = None if covariance is None else np.asarray(covariance, np.float64)
    weights, other = np.asarray(matrix), np.asarray(replaced)
    noise = power = 0.0
    rows = max(1, _BLOCK // max(weights.shape[1], 1))
    for first in range(0, len(weights), rows):
        part = slice(first, first + rows)
        block = np.asarray(weights[part], np.float64)
        noise += _energy(block - np.asarray(other[part], np.float64), normal)
        power += _energy(block, normal)
    if power > 0:
        return noise / power
    return float("inf") if noise > 0 else 0.0


def _energy(matrix: Floats, covariance: Floats | None) -> float:
    product = matrix if covariance is None else matrix @ covariance
    return max(float(np.vdot(product, matrix)), 0.0)


def _conjugate_gradients(
    apply: Callable[[Floats], Floats],
    target: Floats,
    diagonal: Floats,
    start: Floats,
    iterations: int,
) -> Floats:
    """Solve one positive definite system per row of ``target``, preconditioned by ``diagonal``.

    Unknowns with a zero in ``diagonal`` keep their start.
    """
    inverse = np.divide(1.0, diagonal, out=np.zeros_like(diagonal), where=diagonal > 0)
    settled = _SETTLED * np.einsum("ij,ij,ij->i", target, inverse, target)
    solution = start.copy()
    residual = target - apply(start)
    scaled = residual * inverse
    direction = scaled.copy()
    size = np.einsum("ij,ij->i", residual, scaled)
    for _ in range(iterations):
        moving = size > settled
        if not moving.any():
            break
        image = apply(direction)
        curvature = np.einsum("ij,ij->i", direction, image)
        moving &= curvature > 0
        step = np.divide(size, curvature, out=np.zeros_like(size), where=moving)[:, None]
        solution += step * direction
        residual -= step * image
        scaled = residual * inverse
        previous, size = size, np.einsum("ij,ij->i", residual, scaled)
        ratio = np.divide(size, previous, out=np.zeros_like(size), where=moving)
        direction *= ratio[:, None]
        direction += scaled
    return solution
