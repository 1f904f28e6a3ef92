"""Structured matrices nearest to a dense one: entries tied by their place, Kronecker products.

Nearest under the covariance ``(m, m)`` of the inputs where that is given: what is least is the
change of the output.
"""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import solve_triangular
from scipy.sparse.linalg import LinearOperator, cg

from onnxslim_tk.kernels.least_squares import damped

Floats = NDArray[np.float64]
Index = NDArray[np.int64]
NOTHING: Final = -1
"""The index of an entry that is zero."""
_ITERATIONS: Final = 60


def toeplitz_index(rows: int, inputs: int) -> Index:
    """Which of ``rows + inputs - 1`` values stands where: one for each diagonal."""
    return np.arange(rows)[:, None] - np.arange(inputs)[None] + inputs - 1


def hankel_index(rows: int, inputs: int) -> Index:
    """Which of ``rows + inputs - 1`` values stands where: one for each antidiagonal."""
    return np.arange(rows)[:, None] + np.arange(inputs)[None]


def circulant_index(rows: int, inputs: int) -> Index:
    """Which of ``max(rows, inputs)`` values stands where: diagonals that come round again."""
    return (np.arange(rows)[:, None] - np.arange(inputs)[None]) % max(rows, inputs)


def block_index(rows: int, inputs: int, blocks: int) -> Index:
    """Which value stands where in a matrix of ``blocks`` blocks on its diagonal.

    Raises ValueError where the blocks don't come out even.
    """
    if rows % blocks or inputs % blocks:
        raise ValueError(f"block_index: {blocks} blocks must divide {rows} x {inputs}")
    high, wide = rows // blocks, inputs // blocks
    row, column = np.arange(rows)[:, None], np.arange(inputs)[None]
    return np.where(row // high == column // wide, row * wide + column % wide, NOTHING)


def tied(
    matrix: NDArray[Any],
    index: Index,
    covariance: NDArray[Any] | None = None,
    damping: float = 1e-3,
) -> Floats:
    """The values ``(p,)`` for which a matrix ``(n, m)`` of tied entries is nearest to ``matrix``.

    ``index`` ``(n, m)`` says which value stands where. Means of the tied entries without
    ``covariance``; else conjugate gradients, begun there.
    """
    weights = np.asarray(matrix, np.float64)
    count = int(index.max()) + 1
    held = np.maximum(np.bincount(index[index >= 0], minlength=count), 1)
    values = _gathered(weights, index, count) / held
    if covariance is None:
        return values
    normal = damped(covariance, damping)

    def image(vector: Floats) -> Floats:
        return _gathered(spread(vector, index) @ normal, index, count)

    system = LinearOperator((count, count), matvec=image, dtype=np.float64)
    target = _gathered(weights @ normal, index, count)
    found, _ = cg(system, target, x0=values, rtol=1e-8, maxiter=_ITERATIONS)
    return np.asarray(found, np.float64)


def spread(values: NDArray[Any], index: Index) -> Floats:
    """The matrix of tied entries."""
    return np.asarray(np.where(index >= 0, values[np.maximum(index, 0)], 0.0), np.float64)


def _gathered(matrix: Floats, index: Index, count: int) -> Floats:
    there = index >= 0
    return np.asarray(np.bincount(index[there], matrix[there], count), np.float64)


def kronecker(
    matrix: NDArray[Any],
    left: tuple[int, int],
    terms: int,
    covariance: NDArray[Any] | None = None,
    damping: float = 1e-3,
) -> tuple[Floats, Floats]:
    """``A (t, n1, m1)`` and ``B (t, n2, m2)`` whose Kronecker products add up to ``matrix``.

    ``left`` is ``(n1, m1)``. The SVD of the rearranged matrix (Van Loan and Pitsianis, 1993), under
    the covariance of the two halves of the inputs as if they were not correlated.
    """
    rows, inputs = matrix.shape
    high, wide = left
    low, narrow = rows // high, inputs // wide
    tensor = np.asarray(matrix, np.float64).reshape(high, low, wide, narrow)
    roots: list[Floats] | None = None
    if covariance is not None:
        grid = np.asarray(covariance, np.float64).reshape(wide, narrow, wide, narrow)
        halves = np.einsum("anbn->ab", grid), np.einsum("aman->mn", grid)
        roots = [np.asarray(np.linalg.cholesky(damped(half, damping))) for half in halves]
        tensor = np.einsum("iajb,jk,bc->iakc", tensor, roots[0], roots[1], optimize=True)
    turned = tensor.transpose(0, 2, 1, 3).reshape(high * wide, low * narrow)
    u, s, v = np.linalg.svd(turned, full_matrices=False)
    share = np.sqrt(s[:terms])
    first = (u[:, :terms] * share).T.reshape(terms, high, wide)
    second = (v[:terms] * share[:, None]).reshape(terms, low, narrow)
    if roots is not None:
        first, second = (
            np.stack([solve_triangular(root.T, part.T, lower=False).T for part in parts])
            for root, parts in zip(roots, (first, second), strict=True)
        )
    return first, second
