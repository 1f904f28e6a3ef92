"""Rounding of a weight matrix ``(rows, inputs)`` to shared vectors, with error feedback.

Entries are ``(k, d)``. A vector stands in one row, over d inputs in turn, or in one column, over d
rows in turn; every row has a scale, ``(rows,)``, that the entries are times.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxslim_tk.kernels.least_squares import damped

Floats = NDArray[np.float64]
_BLOCK = 64


def nearest_down(values: Floats, scales: Floats, entries: Floats) -> Floats:
    """The nearest scaled entries for a column ``(rows,)`` of vectors that go down it.

    The number of rows must be a multiple of d.
    """
    width = entries.shape[1]
    rows, wanted = scales.reshape(-1, width), values.reshape(-1, width)
    distances = rows**2 @ (entries**2).T - 2.0 * (rows * wanted) @ entries.T
    return np.asarray((entries[distances.argmin(axis=1)] * rows).ravel(), np.float64)


def vector_feedback(
    matrix: NDArray[Any],
    covariance: NDArray[Any],
    scales: Floats,
    entries: Floats,
    damping: float = 0.01,
) -> Floats:
    """Round d columns after d columns; the columns to come make up for the error so far.

    GPTVQ (van Baalen et al., 2024): an entry is the nearest under what the error costs once the
    columns to come have made up for it. Vectors go along the rows, and d divides their length.
    Columns in the order of their falling mean diagonal. Raises numpy.linalg.LinAlgError if the
    damped covariance isn't positive definite.
    """
    width = entries.shape[1]
    normal = damped(covariance, damping)
    order = np.argsort(-np.diag(normal).reshape(-1, width).mean(1), kind="stable")
    columns = (order[:, None] * width + np.arange(width)).ravel()
    # V V^T = C with V upper triangular: a column's errors cost what V says of it alone.
    root = np.linalg.cholesky(normal[np.ix_(columns, columns)][::-1, ::-1])[::-1, ::-1]
    spread = np.linalg.inv(root)
    pending = np.asarray(matrix, np.float64)[:, columns]
    for first in range(0, len(columns), _BLOCK):
        last = min(first + _BLOCK, len(columns))
        errors = np.empty((len(pending), last - first))
        for at in range(first, last, width):
            own = slice(at, at + width)
            cost = root[own, own] @ root[own, own].T
            found = _nearest_along(pending[:, own], scales, entries, cost)
            error = (pending[:, own] - found) @ root[own, own]
            pending[:, own] = found
            pending[:, at + width : last] -= error @ spread[own, at + width : last]
            errors[:, at - first : at - first + width] = error
        pending[:, last:] -= errors @ spread[first:last, last:]
    result = np.empty_like(pending)
    result[:, columns] = pending
    return result


def vector_descent(
    matrix: Floats, rounded: Floats, covariance: Floats, scales: Floats, entries: Floats
) -> Floats:
    """Round every d columns once more to what is best while all others stay.

    Never raises ``tr((W - W') C (W - W')^T)``. ``covariance`` must be positive definite, vectors
    go along the rows, and d divides their length.
    """
    width, found = entries.shape[1], rounded.copy()
    for first in range(0, matrix.shape[1], _BLOCK):
        block = slice(first, first + _BLOCK)
        pull = (matrix - found) @ covariance[:, block]
        for at in range(0, pull.shape[1], width):
            own, there = slice(first + at, first + at + width), slice(at, at + width)
            cost = covariance[own, own]
            best = found[:, own] + pull[:, there] @ np.linalg.inv(cost)
            moved = _nearest_along(best, scales, entries, cost)
            pull -= (moved - found[:, own]) @ covariance[own, block]
            found[:, own] = moved
    return found


def _nearest_along(values: Floats, scales: Floats, entries: Floats, cost: Floats) -> Floats:
    """Scaled entries for vectors ``(rows, d)`` with the least ``e^T cost e``."""
    factor = np.linalg.cholesky(cost)
    turned, wanted = entries @ factor, (values / scales[:, None]) @ factor
    distances = (turned**2).sum(1) - 2.0 * wanted @ turned.T
    return np.asarray(entries[distances.argmin(axis=1)] * scales[:, None], np.float64)
