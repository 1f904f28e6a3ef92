"""Factors for channels that share a grid: what one layer gains the next must hold."""

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from onnxslim_tk.kernels.rounding import WEIGHT_BITS, largest_code

Floats = NDArray[np.float64]
_ALPHAS: Final = (0.25, 0.5, 0.75, 1.0)
_MOST: Final = 64.0
# Few samples may not have shown a quiet channel's greatest values: it is taken for louder.
_QUIETEST: Final = 1 / 16
_LEVELS: Final = 255
_STEPS: Final = largest_code(WEIGHT_BITS)


def balancing_factors(peaks: Floats, weights: Sequence[Floats], alpha: float) -> Floats:
    """What channels are to be multiplied by, ``(channels,)``, 1 in the geometric mean.

    ``peaks`` are greatest magnitudes by channel, ``weights`` matrices ``(rows, channels)`` that
    read them. ``alpha`` 1 makes all peaks alike, 0.5 shares their spread with the weights (Xiao et
    al., 2023). Channels that are always zero, or that nothing reads, keep their scale.
    """
    reach = np.max([np.abs(matrix).max(axis=0) for matrix in weights], axis=0)
    alive = (peaks > 0) & (reach > 0)
    factors = np.ones(len(peaks))
    if alive.any():
        logs = (1 - alpha) * np.log(reach[alive]) - alpha * np.log(peaks[alive])
        factors[alive] = np.exp(np.clip(logs - logs.mean(), -np.log(_MOST), np.log(_MOST)))
    return factors


def grid_noise(
    peaks: Floats, squares: Floats, weights: Sequence[Floats], factors: Floats, apart: bool
) -> float:
    """Squared error that int8 is expected to make in what ``weights`` give, over its energy.

    Activations lie on one grid, weights on one a row; ``squares`` are mean squares by channel.
    ``apart`` says that every channel has a weight grid of its own (depthwise).
    """
    step = float((peaks * factors).max()) / _LEVELS
    noise = energy = 0.0
    for matrix in weights:
        energy += float((matrix**2 @ squares).sum())
        noise += step**2 / 12 * float((matrix**2 @ factors**-2.0).sum())
        if not apart:
            steps = np.abs(matrix / factors).max(axis=1) / _STEPS
            noise += float((steps**2).sum() / 12 * (squares * factors**2).sum())
    return noise / energy if energy > 0 else 0.0


def best_factors(
    peaks: Floats, squares: Floats, weights: Sequence[Floats], apart: bool
) -> tuple[Floats, float]:
    """The balancing factors of least expected noise, and that noise over the one without them."""
    peaks = np.where(peaks > 0, np.maximum(peaks, _QUIETEST * peaks.max()), 0.0)
    best = np.ones(len(peaks))
    before = least = grid_noise(peaks, squares, weights, best, apart)
    for alpha in _ALPHAS:
        factors = balancing_factors(peaks, weights, alpha)
        noise = grid_noise(peaks, squares, weights, factors, apart)
        if noise < least:
            best, least = factors, noise
    return best, least / before if before > 0 else 1.0
