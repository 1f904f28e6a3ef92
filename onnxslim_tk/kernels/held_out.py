"""Least squares from rows, with as much of the old weights as rows that weren't fitted ask for."""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
# From next to nothing to where the old weights hardly move; shares of the mean variance.
_DAMPINGS: Final = tuple(10.0 ** (k / 2) for k in range(-6, 5))
_FLOOR: Final = 1e-20


def fit_rows(
    x: NDArray[Any], y: NDArray[Any], prior: NDArray[Any], held: NDArray[np.bool_]
) -> Floats:
    """Weights ``(groups, n, d)`` that give ``y`` for ``x`` about their means, pulled to ``prior``.

    ``x`` is ``(groups, rows, d)``, ``y`` ``(groups, rows, n)``, ``prior`` as the weights. The pull
    (ridge regression, Hoerl and Kennard, 1970) is the one with which weights fitted to the other
    rows err least on those that ``held`` marks, ``(rows,)``: rows of one sample are alike, so their
    number doesn't tell how much they show. Raises ValueError where ``held`` marks all or none.
    """
    if held.all() or not held.any():
        raise ValueError("fit_rows: held must mark some of the rows, not all or none")
    damping = _best_damping(x, y, prior, held)
    _, _, basis, values, wanted = _prepared(x, y, prior)
    return _pulled(prior, basis, values, wanted, damping)


def _prepared(
    x: NDArray[Any], y: NDArray[Any], prior: NDArray[Any]
) -> tuple[NDArray[Any], NDArray[Any], Floats, Floats, Floats]:
    """Means, the eigenvectors and values of the covariance, and the step they'd take undamped."""
    x_mean = x.mean(1, keepdims=True, dtype=np.float64).astype(np.float32)
    y_mean = y.mean(1, keepdims=True, dtype=np.float64).astype(np.float32)
    inputs, outputs = x - x_mean, y - y_mean
    rows = x.shape[1]
    spread = (inputs.transpose(0, 2, 1) @ inputs).astype(np.float64) / rows
    left = outputs - inputs @ prior.transpose(0, 2, 1).astype(np.float32)
    cross = (left.transpose(0, 2, 1) @ inputs).astype(np.float64) / rows
    values, basis = np.linalg.eigh(spread)
    return x_mean, y_mean, basis, np.maximum(values, 0.0), cross @ basis


def _pulled(
    prior: NDArray[Any], basis: Floats, values: Floats, wanted: Floats, damping: float
) -> Floats:
    step = wanted / _damped(values, damping)[:, None]
    return np.asarray(prior + step @ basis.transpose(0, 2, 1), np.float64)


def _damped(values: Floats, damping: float) -> Floats:
    return np.asarray(values + damping * values.mean(1, keepdims=True) + _FLOOR, np.float64)


def _best_damping(
    x: NDArray[Any], y: NDArray[Any], prior: NDArray[Any], held: NDArray[np.bool_]
) -> float:
    x_mean, y_mean, basis, values, wanted = _prepared(x[:, ~held], y[:, ~held], prior)
    inputs, outputs = x[:, held] - x_mean, y[:, held] - y_mean
    left = outputs - inputs @ prior.transpose(0, 2, 1).astype(np.float32)
    turned = inputs @ basis.astype(np.float32)
    errors = []
    for damping in _DAMPINGS:
        step = (wanted / _damped(values, damping)[:, None]).astype(np.float32)
        errors.append(float(np.square(left - turned @ step.transpose(0, 2, 1)).sum()))
    return float(_DAMPINGS[int(np.argmin(errors))])
