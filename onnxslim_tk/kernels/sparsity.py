"""Which weights go: the smallest ones, alone, in patterns or in blocks."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import solve_triangular

from onnxslim_tk.kernels.least_squares import damped

Floats = NDArray[np.float64]
# The price on what lies between weights and masked weights grows the faster, the more of the mask
# moved in some steps at the same price.
_FIRST_PRICE = 0.1
_GROWTH = ((0.1, 1.3), (0.005, 1.2), (0.0, 1.1))
_STEADY = 3
_STEPS = 60


def magnitude_mask(matrix: NDArray[Any], sparsity: float) -> NDArray[np.bool_]:
    """Mask that keeps the largest weights: True where a weight stays, shape of ``matrix``.

    Exactly ``round(sparsity * matrix.size)`` entries are False; among equal magnitudes the first
    in C order go first. Raises ValueError unless ``sparsity`` is in [0, 1].
    """
    magnitudes = _magnitudes(matrix)
    count = _count(magnitudes.size, sparsity, "magnitude_mask")
    keep = np.ones(magnitudes.size, np.bool_)
    if count:
        border = np.partition(magnitudes, count - 1)[count - 1]
        below = magnitudes < border
        keep[below] = False
        ties = np.flatnonzero(magnitudes == border)
        keep[ties[: count - np.count_nonzero(below)]] = False
    return keep.reshape(np.shape(matrix))


def magnitude_threshold(matrices: Sequence[NDArray[Any]], sparsity: float) -> float:
    """One threshold for many tensors: dropping every ``abs(w) <= threshold`` reaches ``sparsity``.

    The threshold is the ``round(sparsity * total)``-th smallest magnitude of all ``matrices``
    together, so ties can only drop more; it is 0 where nothing needs to go. Raises ValueError
    unless ``sparsity`` is in [0, 1].
    """
    magnitudes = [_magnitudes(matrix) for matrix in matrices]
    count = _count(sum(part.size for part in magnitudes), sparsity, "magnitude_threshold")
    if not count:
        return 0.0
    return float(np.partition(np.concatenate(magnitudes), count - 1)[count - 1])


def _magnitudes(matrix: NDArray[Any]) -> NDArray[np.floating]:
    values = np.asarray(matrix)
    # Integers become floats first: the magnitude of the least int8 is no int8.
    floats: NDArray[np.floating] = values.astype(np.result_type(values, np.float32), copy=False)
    return np.asarray(np.abs(floats)).ravel()


def _count(size: int, sparsity: float, who: str) -> int:
    if not 0 <= sparsity <= 1:
        raise ValueError(f"{who}: sparsity must be in [0, 1], got {sparsity}")
    return round(sparsity * size)


def relative_scores(matrix: Floats, energies: Floats | None = None) -> Floats:
    """Magnitudes of weights ``(..., rows, inputs)`` in units of their row's root mean square.

    With ``energies`` ``(..., inputs)``, the mean square of each input, the magnitude of what a
    weight brings to its output (Wanda, Sun et al., 2023). A row of small weights may matter as
    much as any other: a folded BatchNormalization scales rows at will.
    """
    scores = np.abs(np.asarray(matrix, np.float64))
    if energies is not None:
        scores *= np.sqrt(np.maximum(energies, 0.0))[..., None, :]
    return _relative(scores)


def _relative(rows: Floats) -> Floats:
    scale = np.sqrt(np.mean(rows**2, axis=-1, keepdims=True))
    return np.asarray(rows / np.where(scale > 0, scale, 1.0))


def pattern_mask(scores: Floats, keep: int, of: int) -> NDArray[np.bool_]:
    """Mask that keeps the ``keep`` best of each ``of`` neighbours along the last axis.

    What is left over at the end of a row stays whole. Among equal scores the first stay. Raises
    ValueError unless ``0 < keep <= of``.
    """
    if not 0 < keep <= of:
        raise ValueError(f"pattern_mask: needs 0 < keep <= of, got {keep} of {of}")
    whole = scores.shape[-1] // of * of
    mask = np.ones(scores.shape, np.bool_)
    parts = scores[..., :whole].reshape(*scores.shape[:-1], -1, of)
    ranks = np.argsort(np.argsort(-parts, axis=-1, kind="stable"), axis=-1, kind="stable")
    mask[..., :whole] = (ranks < keep).reshape(*scores.shape[:-1], whole)
    return mask


def block_mask(scores: Floats, sparsity: float, width: int) -> NDArray[np.bool_]:
    """Mask in blocks of ``width`` neighbours along the last axis, the least energy going first.

    The last block of a row may be shorter. Raises ValueError unless ``sparsity`` is in [0, 1] and
    ``width`` at least 1.
    """
    if width < 1:
        raise ValueError(f"block_mask: width must be 1 or more, got {width}")
    length = scores.shape[-1]
    count = -(-length // width)
    padded = np.zeros((*scores.shape[:-1], count * width))
    padded[..., :length] = scores**2
    sizes = np.full(count, width)
    sizes[-1] = length - (count - 1) * width
    energies = padded.reshape(*scores.shape[:-1], count, width).sum(-1) / sizes
    keep = magnitude_mask(energies, sparsity)
    return np.repeat(keep, width, axis=-1)[..., :length]


def swept_mask(
    matrix: Floats,
    covariance: NDArray[Any],
    choose: Callable[[Floats], NDArray[np.bool_]],
    damping: float = 0.01,
    block: int = 128,
) -> NDArray[np.bool_]:
    """Mask of SparseGPT (Frantar and Alistarh, 2023): what goes is made up for as it goes.

    ``matrix`` is ``(n, d)``, ``covariance`` ``(d, d)``. ``choose`` gives the mask for the scores
    ``(n, k)`` of ``block`` columns at a time: squared weights over the variance that their input
    keeps once the later inputs are known. Raises numpy.linalg.LinAlgError if the damped
    covariance isn't positive definite.
    """
    pending = np.array(matrix, np.float64)
    mask = np.ones(pending.shape, np.bool_)
    normal = damped(covariance, damping)
    # U with U^T U = C^-1, upper triangular, from the Cholesky factor of C turned around.
    turned = np.linalg.cholesky(normal[::-1, ::-1])[::-1, ::-1]
    root = solve_triangular(turned, np.eye(len(normal)), lower=False, check_finite=False)
    for first in range(0, pending.shape[1], block):
        part = slice(first, min(first + block, pending.shape[1]))
        spread = np.diag(root)[part]
        mask[:, part] = choose(np.abs(pending[:, part]) / spread)
        errors = np.zeros((len(pending), part.stop - first))
        for k in range(first, part.stop):
            gone = np.where(mask[:, k], 0.0, pending[:, k]) / root[k, k]
            pending[:, k : part.stop] -= np.outer(gone, root[k, k : part.stop])
            errors[:, k - first] = gone
        pending[:, part.stop :] -= errors @ root[part, part.stop :]
    return mask


def alternating_mask(
    matrix: Floats,
    covariance: NDArray[Any],
    choose: Callable[[Floats], NDArray[np.bool_]],
    damping: float = 0.01,
) -> NDArray[np.bool_]:
    """Mask that weights and zeros agree on in turn: ALPS (Meng, Behdin, Wang and Mazumder, 2024).

    ``matrix`` is ``(groups, rows, inputs)``, ``covariance`` ``(groups, inputs, inputs)``;
    ``choose`` gives the mask for scores in the shape of ``matrix``, from its magnitudes at first.
    Alternating directions (ADMM): the best weights near the masked ones, the best mask of those,
    and a growing price on what lies between, until the mask stays. Inputs are taken in units of
    their energy, rows in units of their weights' root mean square. True where a weight stays.
    Raises ValueError if a covariance isn't square or ``damping`` is negative.
    """
    normal = np.stack([damped(c, damping) for c in covariance])
    energies = np.sqrt(np.diagonal(normal, axis1=1, axis2=2))[:, None]
    normal /= energies.transpose(0, 2, 1) * energies
    # A group that few samples wake counts like any other. And a mask needs few digits.
    energies /= energies.mean(-1, keepdims=True)
    weights = (_relative(np.asarray(matrix, np.float64)) * energies).astype(np.float32)
    values, axes = np.linalg.eigh(normal.astype(np.float32))
    back = axes.transpose(0, 2, 1)
    target = weights @ normal.astype(np.float32)
    mask = choose(np.abs(weights))
    masked, dual, price, settled = weights * mask, np.zeros_like(weights), _FIRST_PRICE, ~mask
    for step in range(1, _STEPS + 1):
        free = ((target - dual + price * masked) @ axes / (values + price)[:, None]) @ back
        wanted = free + dual / price
        mask = choose(np.abs(wanted))
        masked = wanted * mask
        dual += price * (free - masked)
        if step % _STEADY == 0:
            moved = np.count_nonzero(mask != settled) / mask.size
            if not moved:
                break
            price *= next(growth for least, growth in _GROWTH if moved > least)
            settled = mask
    return mask
