"""Streamed figures of each slice of an output: one class, one channel, one component."""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

_MOST_SLICES: Final = 4096
_SILENT: Final = 1e-6
"""Share of the slices' mean energy below which a slice has no ratio worth a word."""
_STILL: Final = 1e-2
"""Share of its own size that a slice must move by to count as moving."""
_FAINT: Final = 2e-4
"""Share of the output's range below which nobody misses a slice that has stopped moving."""
_CONSTANT: Final = 1e-6
"""Share of its own range below which a slice counts as constant."""


class Slices:
    """Energy, error and range of each slice along one axis, over any number of samples.

    The axis is the last, for four axes and more the second, where ONNX keeps channels, and so
    for three when the last is longer than 4096. There
    are no slices when the axis is the only one, has one place or more than 4096, or changes its
    length from sample to sample.
    """

    def __init__(self) -> None:
        self._open = True
        self._energy: NDArray[np.float64] | None = None
        self._error = np.zeros(0)
        self._ranges = np.zeros((0, 0))

    def update(self, reference: NDArray[np.float64], value: NDArray[np.float64]) -> None:
        """Take in one sample: two arrays of one shape; what isn't finite counts as 0."""
        if not self._open or reference.size == 0:
            return
        axis = 1 if reference.ndim >= 4 else reference.ndim - 1
        if reference.ndim == 3 and reference.shape[2] > _MOST_SLICES:
            axis = 1
        count = reference.shape[axis] if reference.ndim > 1 else 0
        if self._energy is None and 1 < count <= _MOST_SLICES:
            self._energy = np.zeros(count)
            self._error = np.zeros(count)
            self._ranges = np.array([[np.inf], [-np.inf], [np.inf], [-np.inf]]).repeat(count, 1)
        if self._energy is None or len(self._energy) != count:
            self._open, self._energy = False, None
            return
        others = tuple(i for i in range(reference.ndim) if i != axis)
        self._energy += np.square(reference).sum(axis=others)
        self._error += np.square(reference - value).sum(axis=others)
        low, high, result_low, result_high = self._ranges
        np.minimum(low, reference.min(axis=others), out=low)
        np.maximum(high, reference.max(axis=others), out=high)
        np.minimum(result_low, value.min(axis=others), out=result_low)
        np.maximum(result_high, value.max(axis=others), out=result_high)

    def worst(self) -> tuple[int, float] | None:
        """The slice with the lowest ratio of signal to noise, in dB, among those that signal."""
        if self._energy is None:
            return None
        index = np.flatnonzero(self._energy > _SILENT * self._energy.mean())
        if index.size == 0:
            return None
        ratios = [decibels(self._energy[i], self._error[i]) for i in index]
        place = int(np.argmin(ratios))
        return int(index[place]), ratios[place]

    def collapsed(self) -> tuple[int, ...]:
        """The slices that move in the original and stand still in the result."""
        if self._energy is None:
            return ()
        low, high, result_low, result_high = self._ranges
        # Mostly against its own size: scores beside boxes are small, and are what must not die.
        spread = high - low
        moves = spread > _STILL * np.maximum(np.abs(low), np.abs(high))
        moves &= spread > _FAINT * (high.max() - low.min())
        still = result_high - result_low <= _CONSTANT * (high - low)
        return tuple(int(i) for i in np.flatnonzero(moves & still))


def decibels(energy: Any, error: Any) -> float:
    """Ratio of signal to noise in dB, at most 200, which also stands for no noise at all."""
    if error == 0:
        return 200.0
    if energy == 0:
        return float("-inf")
    return float(min(200.0, 10 * np.log10(energy / error)))
