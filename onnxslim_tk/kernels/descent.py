"""Refinement of rounded weights ``(groups, rows, inputs)`` under the covariance of their inputs.

Both repairs lower ``tr((W - W') C (W - W')^T)``, summed over the groups, and never raise it.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxslim_tk.kernels.grouped import FEW_INPUTS, RoundColumn

Floats = NDArray[np.float64]
_BLOCK = 64
_ITERATIONS = 12
# So many weights tell the entries of a codebook as well as all would.
_ENOUGH = 1 << 18


def coordinate_descent(
    matrix: Floats, rounded: Floats, covariance: Floats, round_column: RoundColumn, passes: int = 1
) -> Floats:
    """Round every column once more to what is best while all others stay; ``passes`` times.

    ``round_column(groups (k,), columns (k,), values (k, rows))`` gives the nearest values that are
    allowed, and ``rounded`` holds such values. Columns come in their own order (Behdin et al.,
    2023). Every diagonal of ``covariance`` must be positive.
    """
    found = rounded.copy()
    groups, _, inputs = matrix.shape
    if groups > 1 and inputs <= FEW_INPUTS:
        for _ in range(passes):
            _descend_together(matrix, found, covariance, round_column)
        return found
    for group in range(groups):
        turned = np.ascontiguousarray(found[group].T)
        for _ in range(passes):
            _descend(np.ascontiguousarray(matrix[group].T), turned, covariance, round_column, group)
        found[group] = turned.T
    return found


def codebook_refit(
    matrix: Floats,
    codes: NDArray[np.integer],
    entries: Floats,
    covariance: Floats,
    scales: Floats,
    keep_zero: bool = True,
) -> Floats:
    """Better entries ``(k,)`` for weights ``scales[g, i] * entries[codes[g, i, j]]``.

    ``codes`` has the shape of ``matrix``, ``scales`` is ``(groups, rows)``. An entry that no code
    uses stays, and with ``keep_zero`` one of exactly 0. A dozen conjugate gradients from
    ``entries``, on some rows where there are many. Raises ValueError for a code outside ``[0, k)``.
    """
    count = len(entries)
    if codes.size and (codes.min() < 0 or codes.max() >= count):
        raise ValueError(f"codebook_refit: codes must be in [0, {count})")
    step = max(1, matrix.size // _ENOUGH)
    part = (slice(None), slice(None, None, step)) if len(matrix) == 1 else slice(None, None, step)
    picked, weights, normal = codes[part], matrix[part], covariance
    if len(matrix) > 1:
        normal = covariance[part]
    rows = scales[part][:, :, None]
    flat = picked.ravel()
    free = np.bincount(flat, minlength=count) > 0
    if keep_zero:
        free &= entries != 0

    def gather(products: Floats) -> Floats:
        sums = np.bincount(flat, weights=(products * rows).ravel(), minlength=count)
        return np.where(free, sums, 0.0)

    diagonal = gather(rows * np.diagonal(normal, axis1=1, axis2=2)[:, None, :])
    inverse = np.divide(1.0, diagonal, out=np.zeros(count), where=diagonal > 0)
    solution = entries.astype(np.float64)
    residual = gather((weights - solution[picked] * rows) @ normal)
    direction = residual * inverse
    size = float(residual @ direction)
    settled = 1e-12 * size
    for _ in range(_ITERATIONS):
        image = gather((direction[picked] * rows) @ normal)
        curvature = float(direction @ image)
        if size <= settled or curvature <= 0:
            break
        solution += size / curvature * direction
        residual -= size / curvature * image
        scaled = residual * inverse
        previous, size = size, float(residual @ scaled)
        direction = scaled + size / previous * direction
    return solution


def _descend_together(
    matrix: Floats, found: Floats, covariance: Floats, round_column: RoundColumn
) -> None:
    groups, _, inputs = matrix.shape
    every = np.arange(groups)
    pull = (matrix - found) @ covariance
    for k in range(inputs):
        best = found[:, :, k] + pull[:, :, k] / covariance[:, k, k, None]
        values = np.asarray(round_column(every, np.full(groups, k), best), np.float64)
        pull -= (values - found[:, :, k])[:, :, None] * covariance[:, None, k]
        found[:, :, k] = values


def _descend(
    matrix: Floats, found: Floats, covariance: Floats, round_column: RoundColumn, group: int
) -> None:
    """One pass over ``(inputs, rows)``; what a block's columns pull is brought up to date once."""
    groups, normal = np.array([group]), covariance[group]
    for first in range(0, len(found), _BLOCK):
        block = slice(first, first + _BLOCK)
        pull = normal[block] @ (matrix - found)
        for k in range(len(pull)):
            column = first + k
            best = found[column] + pull[k] / normal[column, column]
            values: Any = round_column(groups, np.array([column]), best[None])[0]
            pull -= np.outer(normal[block, column], values - found[column])
            found[column] = values
