"""Rounding of weight matrices to a grid: scales, codes, and error feedback."""

from collections.abc import Callable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.linalg.lapack import dtrtri as invert_triangular

from onnxslim_tk.kernels.least_squares import damped

Floats = NDArray[np.float64]
WEIGHT_BITS: Final = 7
"""Bits of int8 weights that no processor gets wrong.

Without VNNI, x86-64 adds two products of uint8 and int8 in 16 bits, which 8 bits overflow.
"""
# A grid of few levels wants to clip much more than one of 8 bits.
_SHRINK = np.linspace(1.0, 0.2, 33)
# Float64 is for as many values at once as the cache holds; rows that lie as columns are turned
# some more at a time.
_CHUNK = 1 << 16
_BLOCKS = 32
# What the largest values lose to a shrunken grid says early that all narrower ones are worse.
_OUTER = 0.6
_CLEARLY = 1 + 1e-6


def symmetric_scales(
    matrix: NDArray[Any],
    bits: int = WEIGHT_BITS,
    search: bool = True,
    weights: NDArray[Any] | None = None,
) -> Floats:
    """One positive scale per row, ``(n,)``, for symmetric codes of ``bits`` bits.

    ``matrix`` is ``(n, d)``. Without ``search`` the largest code stands for the largest magnitude
    of the row; with it, the scale is the best of 33 shrunken ones by squared error, where
    ``weights`` ``(d,)`` says how much each column counts. A row of zeros gets the scale 1. Raises
    ValueError unless ``bits`` is in [2, 8].
    """
    top = largest_code(bits)
    values = np.asarray(matrix)
    scales = np.ones(len(values))
    columns = np.ones(values.shape[1]) if weights is None else np.asarray(weights, np.float64)
    rows = max(1, _CHUNK // max(values.shape[1], 1))
    for first in range(0, len(values), rows * _BLOCKS):
        block = np.ascontiguousarray(values[first : first + rows * _BLOCKS], np.float64)
        largest = np.abs(block).max(axis=1, initial=0.0) / top
        # A scale that float32 can't hold would turn into a division by zero in the runtime.
        flat = largest < np.finfo(np.float32).tiny
        largest[flat] = 1.0
        if search and block.size:
            for start in range(0, len(block), rows):
                part = slice(start, start + rows)
                largest[part] *= _best_shrink(block[part], largest[part], top, columns)
            largest[flat] = 1.0
            largest = np.maximum(largest, np.finfo(np.float32).tiny)
        scales[first : first + len(block)] = largest
    return scales


def to_grid(
    matrix: NDArray[Any], scales: NDArray[Any], bits: int = WEIGHT_BITS
) -> NDArray[np.int8]:
    """Codes ``(n, d)`` of the nearest grid points, clipped to ``+-(2**(bits - 1) - 1)``.

    ``matrix`` is ``(n, d)``, ``scales`` ``(n,)`` and positive. Raises ValueError unless ``bits``
    is in [2, 8].
    """
    top = largest_code(bits)
    values, steps = np.asarray(matrix), np.asarray(scales, np.float64)[:, None]
    codes = np.empty_like(values, np.int8)
    rows = max(1, _CHUNK * _BLOCKS // max(values.shape[1], 1))
    for first in range(0, len(values), rows):
        part = slice(first, first + rows)
        block = np.ascontiguousarray(values[part], np.float64) / steps[part]
        np.rint(block, out=block)
        codes[part] = np.clip(block, -top, top, out=block)
    return codes


def error_feedback(
    matrix: NDArray[Any],
    covariance: NDArray[Any],
    round_column: Callable[[int, Floats], NDArray[Any]],
    damping: float = 0.01,
    block: int = 64,
) -> Floats:
    """Round column after column, letting the columns to come make up for the error so far.

    ``matrix`` is ``(n, d)``, ``covariance`` ``(d, d)``; ``round_column(j, values)`` gives the
    rounded ``(n,)`` values of column j, which the result ``(n, d)`` holds unchanged. Columns go in
    the order of falling ``diag(C)``; ``block`` of them are updated at once. GPTQ (Frantar et al.,
    2022). Raises numpy.linalg.LinAlgError if the damped covariance isn't positive definite.
    """
    weights = np.asarray(matrix, np.float64)
    normal = damped(covariance, damping)
    order = np.argsort(-np.diag(normal), kind="stable")
    spread = _inverse_root(normal[np.ix_(order, order)])
    pending = np.ascontiguousarray(weights.T[order])
    width = len(order)
    for first in range(0, width, block):
        last = min(first + block, width)
        errors = np.empty((last - first, len(weights)))
        for k in range(first, last):
            rounded = np.asarray(round_column(int(order[k]), pending[k]), np.float64)
            error = (pending[k] - rounded) / spread[k, k]
            pending[k] = rounded
            pending[k + 1 : last] -= np.outer(spread[k, k + 1 : last], error)
            errors[k - first] = error
        pending[last:] -= spread[first:last, last:].T @ errors
    result = np.empty_like(weights)
    result[:, order] = pending.T
    return result


def largest_code(bits: int) -> int:
    """The greatest magnitude of a symmetric code; raises ValueError unless bits is in [2, 8]."""
    if not 2 <= bits <= 8:
        raise ValueError(f"bits must be in [2, 8], got {bits}")
    return (1 << (bits - 1)) - 1


def _best_shrink(values: Floats, scales: Floats, top: int, columns: Floats) -> Floats:
    """The factor of ``_SHRINK`` per row with the least weighted squared error; ties: the widest."""
    relative = values / scales[:, None]
    grid = np.empty_like(relative)
    best = np.full(len(values), np.inf)
    factors = np.ones(len(values))
    magnitudes = np.abs(relative, out=grid)
    row, column = np.nonzero(magnitudes > _OUTER * top)
    outer, counts = magnitudes[row, column], columns[column]
    for factor in _SHRINK:
        cut = np.maximum(outer - factor * top, 0.0)
        lost = np.bincount(row, np.square(cut) * counts, len(values))
        if np.all(lost > best * _CLEARLY):
            break
        np.divide(relative, factor, out=grid)
        np.rint(grid, out=grid)
        np.clip(grid, -top, top, out=grid)
        grid *= factor
        grid -= relative
        np.square(grid, out=grid)
        error = grid @ columns
        better = error < best
        best[better] = error[better]
        factors[better] = factor
    return factors


def _inverse_root(normal: Floats) -> Floats:
    """The upper triangular U with ``U^T U = normal^-1``."""
    # The Cholesky factor of the flipped matrix, flipped back, is upper triangular: inverting it
    # saves the inversion of the matrix itself, and its rounding errors. Flips and transposes are
    # views, for a wide layer's matrix takes half a gigabyte.
    lower = np.linalg.cholesky(normal[::-1, ::-1])
    inverse = invert_triangular(lower.T, overwrite_c=1)[0].T
    return np.asarray(inverse[::-1, ::-1], np.float64)
