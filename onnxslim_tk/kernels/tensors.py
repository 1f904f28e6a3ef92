"""Factors of a convolution's weight seen as a tensor: Tucker-2 and CP, under its inputs.

A weight is ``(rows, channels, taps)``; the covariance of its inputs ``(d, d)`` with
``d = channels * taps``, taps last, or None where all inputs count the same. tensorly has neither
under a covariance, without which both are as useless as a plain SVD.
"""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve, solve_triangular

from onnxslim_tk.kernels.least_squares import damped
from onnxslim_tk.kernels.lowrank import factorize

Floats = NDArray[np.float64]
_TINY: Final = 1e-9
_SWEEPS: Final = 20


def tucker2(
    weight: NDArray[Any],
    ranks: tuple[int, int],
    covariance: NDArray[Any] | None = None,
    damping: float = 1e-3,
) -> tuple[Floats, Floats, Floats]:
    """``last (n, r)``, ``core (r, s, k)`` and ``first (s, c)`` of Tucker-2 (Kim et al., 2016).

    ``ranks`` is ``(r, s)``. ``first`` splits off under the covariance of the channels alone;
    what the other two then are is the best for it. Raises ValueError for ranks out of range.
    """
    rows, channels, taps = weight.shape
    by_channel = np.asarray(weight, np.float64).transpose(0, 2, 1).reshape(rows * taps, channels)
    _, first = factorize(by_channel, ranks[1], _of_channels(covariance, channels, taps), damping)
    flat = np.asarray(weight, np.float64).reshape(rows, -1)
    if covariance is None:
        seen = np.asarray(np.kron(first, np.eye(taps)), np.float64)
    else:
        seen = (first @ damped(covariance, damping).reshape(channels, -1)).reshape(
            -1, flat.shape[1]
        )
    gram = np.einsum("xck,sc->xsk", seen.reshape(-1, channels, taps), first, optimize=True)
    gram = gram.reshape(len(seen), len(seen))
    inner = _best(flat @ seen.T, gram)
    last, core = factorize(inner, ranks[0], gram, _TINY)
    return last, core.reshape(ranks[0], ranks[1], taps), first


def cp(
    weight: NDArray[Any],
    rank: int,
    covariance: NDArray[Any] | None = None,
    damping: float = 1e-3,
) -> tuple[Floats, Floats, Floats]:
    """``last (n, r)``, ``taps (r, k)`` and ``first (r, c)`` whose outer products add up.

    Alternating least squares under the covariance of the channels (Lebedev et al., 2015), begun
    at the SVD; then ``last`` is the best for the others under the whole covariance.
    """
    rows, channels, taps = weight.shape
    tensor = np.asarray(weight, np.float64)
    marginal = _of_channels(covariance, channels, taps)
    root = None if marginal is None else np.linalg.cholesky(damped(marginal, damping))
    white = tensor if root is None else np.einsum("nck,cd->ndk", tensor, root)
    first, along = _begun(white, rank)
    for _ in range(_SWEEPS):
        last = _solved(np.einsum("nck,cr,kr->nr", white, first, along, optimize=True), first, along)
        first = _solved(np.einsum("nck,nr,kr->cr", white, last, along, optimize=True), last, along)
        along = _solved(np.einsum("nck,nr,cr->kr", white, last, first, optimize=True), last, first)
        for factor in (first, along):
            factor /= np.maximum(np.linalg.norm(factor, axis=0), _TINY)
    if root is not None:
        first = solve_triangular(root.T, first, lower=False, check_finite=False)
    spread = np.einsum("cr,kr->rck", first, along).reshape(rank, -1)
    seen = spread if covariance is None else spread @ damped(covariance, damping)
    last = _best(tensor.reshape(rows, -1) @ seen.T, seen @ spread.T)
    return last, along.T, first.T


def _begun(white: Floats, rank: int) -> tuple[Floats, Floats]:
    """Rank-one parts of the kernel's strongest patterns over channels and taps."""
    rows, channels, taps = white.shape
    _, energies, patterns = np.linalg.svd(white.reshape(rows, -1), full_matrices=False)
    parts = np.linalg.svd(patterns.reshape(-1, channels, taps), full_matrices=False)
    weights = (energies[:, None] * parts[1]).ravel()
    order = np.argsort(-weights, kind="stable")
    order = np.resize(order, rank)
    pattern, place = np.divmod(order, parts[1].shape[1])
    return parts[0][pattern, :, place].T.copy(), parts[2][pattern, place].T.copy()


def _solved(target: Floats, one: Floats, other: Floats) -> Floats:
    return _best(target, (one.T @ one) * (other.T @ other))


def _of_channels(covariance: NDArray[Any] | None, channels: int, taps: int) -> Floats | None:
    """The covariance of the channels at one tap, the mean over taps."""
    if covariance is None:
        return None
    grid = np.asarray(covariance, np.float64).reshape(channels, taps, channels, taps)
    return np.asarray(np.einsum("ctdt->cd", grid) / taps, np.float64)


def _best(target: Floats, gram: Floats) -> Floats:
    """``X`` with ``X @ gram = target``."""
    factor = cho_factor(damped(gram, _TINY), lower=True, check_finite=False)
    return np.asarray(cho_solve(factor, target.T, check_finite=False).T, np.float64)
