"""Low-rank factors of a weight matrix, best for the inputs that the layer really sees."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import solve_triangular

from onnxslim_tk.kernels.least_squares import damped

Floats = NDArray[np.float64]


def factorize(
    matrix: NDArray[Any],
    rank: int,
    covariance: NDArray[Any] | None = None,
    damping: float = 1e-3,
) -> tuple[Floats, Floats]:
    """Factors ``left (n, r)`` and ``right (r, m)`` that minimise ``tr(dW C dW^T)``.

    ``matrix`` is ``(n, m)`` and ``dW = matrix - left @ right``; ``covariance`` is ``(m, m)``, the
    identity if None, damped by ``damping`` times its mean diagonal. Truncated SVD of ``W C^1/2``
    (whitening as in SVD-LLM, Wang et al., 2024), its singular values shared by both factors.
    Raises ValueError unless ``1 <= rank <= min(n, m)``, numpy.linalg.LinAlgError if the damped
    covariance isn't positive definite.
    """
    weights = np.asarray(matrix, np.float64)
    if not 1 <= rank <= min(weights.shape):
        raise ValueError(f"factorize: rank must be in [1, {min(weights.shape)}], got {rank}")
    root = _root(covariance, damping)
    white = weights if root is None else weights @ root
    energies, vectors = np.linalg.eigh(_gram(white))
    kept = vectors[:, ::-1][:, :rank]
    singular = np.sqrt(np.maximum(energies[::-1][:rank], 0.0))
    # A vanished direction has nothing to share, and dividing by its root would only blow up noise.
    share = np.sqrt(np.where(singular > 1e-12 * singular[0], singular, 1.0))
    if white.shape[0] <= white.shape[1]:
        return kept * share, (kept.T @ weights) / share[:, None]
    right = kept.T
    if root is not None:
        right = solve_triangular(root.T, kept, lower=False, check_finite=False).T
    return (white @ kept) / share, right * share[:, None]


def _root(covariance: NDArray[Any] | None, damping: float) -> Floats | None:
    if covariance is None:
        return None
    return np.asarray(np.linalg.cholesky(damped(covariance, damping)), np.float64)


def _gram(white: Floats) -> Floats:
    """The smaller of ``A A^T`` and ``A^T A``: its eigenvectors cost a third of the SVD of A."""
    return white @ white.T if white.shape[0] <= white.shape[1] else white.T @ white
