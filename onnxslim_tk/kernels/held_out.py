"""Least squares from rows, with as much of the old weights as rows that weren't fitted ask for."""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
# From next to nothing to where the old weights hardly move; shares of the mean variance.
_DAMPINGS: Final = tuple(10.0 ** (k / 2) for k in range(-6, 5))
_FLOOR: Final = 1e-20
# Of the largest direction: below it there is but rounding noise of float32.
_ROUNDING: Final = 1e-7


def fit_rows(
    x: NDArray[Any], y: NDArray[Any], prior: NDArray[Any], folds: Sequence[NDArray[np.bool_]]
) -> Floats:
    """Weights ``(groups, n, d)`` that give ``y`` for ``x`` about their means, pulled to ``prior``.

    ``x`` is ``(groups, rows, d)``, ``y`` ``(groups, rows, n)``, ``prior`` as the weights. The pull
    (ridge regression, Hoerl and Kennard, 1970) is the one with which weights fitted to the other
    rows err least on those that each of ``folds`` marks, ``(rows,)``, all of them together: rows of
    one sample are alike, so their number doesn't tell how much they show. Raises ValueError where
    there are no folds, or one marks all rows or none.
    """
    if not folds or any(held.all() or not held.any() for held in folds):
        raise ValueError("fit_rows: folds must each mark some of the rows, not all or none")
    errors = np.sum([_held_errors(x, y, prior, held) for held in folds], axis=0)
    damping = float(_DAMPINGS[int(np.argmin(errors))])
    *_, basis, values, wanted = _prepared(x, y, prior)
    step = wanted / (values + damping * values.sum(1, keepdims=True) / x.shape[2] + _FLOOR)[:, None]
    return np.asarray(prior + step @ basis.transpose(0, 2, 1), np.float64)


def _prepared(
    x: NDArray[Any], y: NDArray[Any], prior: NDArray[Any]
) -> tuple[NDArray[Any], NDArray[Any], Floats, Floats, Floats]:
    """Means, the eigenvectors and values of the covariance, and the step they'd take undamped."""
    x_mean = x.mean(1, keepdims=True, dtype=np.float64).astype(np.float32)
    y_mean = y.mean(1, keepdims=True, dtype=np.float64).astype(np.float32)
    inputs, rows = x - x_mean, x.shape[1]
    left = y - y_mean - inputs @ prior.transpose(0, 2, 1).astype(np.float32)
    cross = (left.transpose(0, 2, 1) @ inputs).astype(np.float64) / rows
    if rows < x.shape[2]:
        # Fewer rows than inputs: their products among themselves tell as much.
        values, among = np.linalg.eigh((inputs @ inputs.transpose(0, 2, 1)).astype(np.float64))
        lengths = np.sqrt(np.maximum(values, values[:, -1:] * _ROUNDING + _FLOOR))
        basis = inputs.transpose(0, 2, 1) @ among / lengths[:, None]
        values = values / rows
    else:
        spread = (inputs.transpose(0, 2, 1) @ inputs).astype(np.float64) / rows
        values, basis = np.linalg.eigh(spread)
    return x_mean, y_mean, basis, np.maximum(values, 0.0), cross @ basis


def _held_errors(
    x: NDArray[Any], y: NDArray[Any], prior: NDArray[Any], held: NDArray[np.bool_]
) -> Floats:
    """For each damping the squared error on the rows ``held`` of weights fitted to the others."""
    x_mean, y_mean, basis, values, wanted = _prepared(x[:, ~held], y[:, ~held], prior)
    inputs, outputs = x[:, held] - x_mean, y[:, held] - y_mean
    left = outputs - inputs @ prior.transpose(0, 2, 1).astype(np.float32)
    turned = inputs @ basis.astype(np.float32)
    total = values.sum(1, keepdims=True) / x.shape[2]
    errors = []
    for damping in _DAMPINGS:
        step = (wanted / (values + damping * total + _FLOOR)[:, None]).astype(np.float32)
        errors.append(float(np.square(left - turned @ step.transpose(0, 2, 1)).sum()))
    return np.array(errors)
