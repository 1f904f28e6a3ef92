"""Ranges of activations: a histogram that grows with the data, and uint8 grids chosen from it."""

from math import floor, frexp, isfinite
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Method = Literal["minmax", "moving-average", "percentile", "mse", "entropy"]
METHODS: Final[tuple[Method, ...]] = ("minmax", "moving-average", "percentile", "mse", "entropy")
BINS: Final = 2048
_LEVELS: Final = 255
_SHRINK: Final = 0.5 ** (np.arange(41) / 8)
# A narrower range has to pay: the histogram's measure is an estimate.
_GAIN: Final = 0.98
_PERCENT: Final = 99.99
# Thresholds that the entropy is computed for; below an eighth of the range none is worth it.
_THRESHOLDS: Final = np.linspace(1.0, 0.125, 57)


class Histogram:
    """Counts of a stream of values in at most 2048 bins, whose width doubles as the range grows.

    Bin k spans ``[k, k + 1) * width`` with a power of two as width, so the counts don't depend on
    how the stream was cut or ordered, and memory doesn't depend on its length. ``low`` and
    ``high`` are the exact extent (0 while empty), ``total`` the number of values, ``zeros`` how
    many of them are exactly zero. ``mean_extremes`` alone depends on how the stream was cut.
    """

    def __init__(self) -> None:
        self.low = 0.0
        self.high = 0.0
        self.total = 0
        self.zeros = 0
        self.counts: NDArray[np.int64] = np.zeros(0, np.int64)
        self._first = 0
        self._exponent = 0
        self._batches = 0
        self._extremes = np.zeros(2)

    @property
    def mean_extremes(self) -> tuple[float, float]:
        """Averages of the batches' least and greatest values, a batch being what one call adds."""
        low, high = self._extremes / max(self._batches, 1)
        return float(low), float(high)

    @property
    def width(self) -> float:
        """Width of a bin, a power of two."""
        return float(2.0**self._exponent)

    @property
    def edges(self) -> Floats:
        """Where the bins begin and the last one ends: ``(len(counts) + 1,)``."""
        places = self._first + np.arange(len(self.counts) + 1, dtype=np.float64)
        return places * self.width

    def add(self, values: NDArray[Any]) -> None:
        """Count ``values`` of any shape; raises ValueError if one of them isn't finite."""
        flat = np.asarray(values, np.float64).ravel()
        if not flat.size:
            return
        low, high = float(flat.min()), float(flat.max())
        if not isfinite(high - low):
            raise ValueError("Histogram: values must be finite")
        self._batches += 1
        self._extremes += (low, high)
        if self.total:
            low, high = min(low, self.low), max(high, self.high)
        exponent = _exponent(low, high)
        first, last = _bin(low, exponent), _bin(high, exponent)
        counts = np.zeros(last - first + 1, np.int64)
        if self.total:
            old = (self._first + np.arange(len(self.counts))) >> (exponent - self._exponent)
            np.add.at(counts, np.maximum(old - first, 0), self.counts)
        bins = np.floor(flat * 2.0**-exponent).astype(np.int64)
        counts += np.bincount(bins - first, minlength=len(counts))
        self.low, self.high, self.counts = low, high, counts
        self._first, self._exponent = first, exponent
        self.total += flat.size
        self.zeros += flat.size - int(np.count_nonzero(flat))

    def percentile(self, percent: float) -> float:
        """The value below which ``percent`` (0 to 100) of the values lie, to one bin's width.

        Raises ValueError while nothing was counted, and for another ``percent``.
        """
        if not self.total:
            raise ValueError("Histogram: a percentile needs values")
        if not 0 <= percent <= 100:
            raise ValueError(f"Histogram: percent must be in [0, 100], got {percent}")
        below = np.concatenate(([0], np.cumsum(self.counts)))
        value = float(np.interp(self.total * percent / 100, below, self.edges))
        return min(max(value, self.low), self.high)


def affine_parameters(low: float, high: float) -> tuple[np.float32, int]:
    """Scale and zero point (0 to 255) of a uint8 grid over ``[low, high]``.

    The range is widened to hold 0, which the zero point stands for exactly; an empty range gives
    ``(1, 0)``. Raises ValueError if the range isn't finite or ``low > high``.
    """
    if not (isfinite(low) and isfinite(high)) or low > high:
        raise ValueError(f"affine_parameters: no grid over [{low}, {high}]")
    limits = np.finfo(np.float32)
    low, high = min(low, 0.0), max(high, 0.0)
    step = high / _LEVELS - low / _LEVELS
    if step < limits.tiny:
        return np.float32(1), 0
    scale = np.float32(min(step, float(limits.max)))
    return scale, min(max(round(-low / float(scale)), 0), _LEVELS)


def activation_range(
    histogram: Histogram, method: Method, floor: float | None = None, ceiling: float | None = None
) -> tuple[float, float]:
    """The range ``(low, high)``, 0 in it, that ``method`` picks for a uint8 grid.

    ``floor`` is a low end that is fixed (see mse_range), ``ceiling`` what the high end must not
    exceed. Raises ValueError for an unknown method.
    """
    if method == "mse":
        low, high = mse_range(histogram, floor)
    elif method == "entropy":
        low, high = entropy_range(histogram)
    elif method == "percentile":
        low, high = percentile_range(histogram)
    elif method == "moving-average":
        low, high = histogram.mean_extremes
    elif method == "minmax":
        low, high = histogram.low, histogram.high
    else:
        raise ValueError(f"activation_range: method must be one of {METHODS}, got {method!r}")
    low = min(low, 0.0) if floor is None else floor
    return low, max(high, 0.0) if ceiling is None else min(max(high, 0.0), ceiling)


def percentile_range(histogram: Histogram, percent: float = _PERCENT) -> tuple[float, float]:
    """The range beyond either end of which ``100 - percent`` of the values lie (Wu et al., 2020).

    An empty histogram gives ``(0, 0)``. Raises ValueError for a percent outside ``[50, 100]``.
    """
    if not 50 <= percent <= 100:
        raise ValueError(f"percentile_range: percent must be in [50, 100], got {percent}")
    if not histogram.total:
        return 0.0, 0.0
    return histogram.percentile(100 - percent), histogram.percentile(percent)


def entropy_range(histogram: Histogram) -> tuple[float, float]:
    """The range that loses least information: Kullback and Leibler's divergence (Migacz, 2017).

    One threshold cuts the magnitudes on both sides. What lies outside counts at the ends for the
    distribution as it is, and not at all for the one on the grid; exact zeros, which a grid always
    holds, are left out. An empty histogram gives ``(0, 0)``.
    """
    low, high = min(histogram.low, 0.0), max(histogram.high, 0.0)
    counts, edges = histogram.counts.astype(np.float64), histogram.edges
    if histogram.zeros:
        counts[np.searchsorted(edges, 0.0, side="right") - 1] -= histogram.zeros
    if not counts.any() or high - low < np.finfo(np.float32).tiny:
        return low, high
    thresholds = (max(-low, high) * _THRESHOLDS).tolist()
    ends = [(max(low, -t), min(high, t)) for t in thresholds]
    # Values that all lie far from zero leave nothing inside a low threshold.
    ends = [(a, b) for a, b in ends if b > edges[0] and a < edges[-1]]
    lost = [_divergence(counts, edges, *pair) for pair in ends]
    return ends[int(np.argmin(lost))]


def _divergence(counts: Floats, edges: Floats, low: float, high: float) -> float:
    """KL divergence in nats of the clipped counts from those spread over the grid's cells."""
    first = max(int(np.searchsorted(edges, low, side="right")) - 1, 0)
    past = int(np.searchsorted(edges[:-1], high, side="right"))
    kept = counts[first:past]
    clipped = kept.copy()
    clipped[0] += counts[:first].sum()
    clipped[-1] += counts[past:].sum()
    centres = np.clip((edges[first:past] + edges[first + 1 : past + 1]) / 2, low, high)
    cells = np.rint((centres - low) * (_LEVELS / (high - low))).astype(np.int64)
    filled = kept > 0
    sums = np.bincount(cells, kept, _LEVELS + 1)
    places = np.bincount(cells, filled, _LEVELS + 1)
    spread = np.where(filled, sums[cells] / np.maximum(places[cells], 1), 0.0)
    # Nothing inside at an end to which all that lies outside was moved: one count, not none.
    spread[clipped > 0] = np.maximum(spread[clipped > 0], 1.0)
    p, q = clipped / clipped.sum(), spread / spread.sum()
    some = p > 0
    return float((p[some] * np.log(p[some] / q[some])).sum())


def mse_range(histogram: Histogram, low_fixed: float | None = None) -> tuple[float, float]:
    """The range ``(low, high)`` whose uint8 grid has the least expected squared error.

    Both ends are searched over shrunken ones; with ``low_fixed`` (at most 0) the low end is
    that point, on the grid exactly, or 0 where it is less than half a step away; what lies below
    counts as lying on it. The full range wins unless another gains 2 %. An empty histogram gives
    ``(0, 0)``. Raises ValueError for a positive ``low_fixed``.
    """
    if low_fixed is not None and not low_fixed <= 0:
        raise ValueError(f"mse_range: low_fixed must not be positive, got {low_fixed}")
    low = min(histogram.low, 0.0) if low_fixed is None else low_fixed
    high = max(histogram.high, 0.0)
    if high / _LEVELS - low / _LEVELS < np.finfo(np.float32).tiny:
        return low, high
    shrink_low = _SHRINK if low < 0 and low_fixed is None else np.ones(1)
    shrink_high = _SHRINK if high > 0 else np.ones(1)
    lows, highs = np.meshgrid(low * shrink_low, high * shrink_high)
    lows, highs = _on_grid(lows.ravel(), highs.ravel(), low_fixed)
    errors = _squared_errors(histogram, lows, highs, low_fixed)
    best = int(np.argmin(errors))
    if errors[best] >= _GAIN * errors[0]:
        best = 0
    return float(lows[best]), float(highs[best])


def expected_error(
    histogram: Histogram, low: float, high: float, low_fixed: float | None = None
) -> float:
    """Mean squared error that a uint8 grid over ``[low, high]`` is expected to make.

    A value inside costs a twelfth of the squared step, an exact zero nothing, a value outside its
    squared distance to the end; ``low_fixed`` as in mse_range.
    """
    lows, highs = _on_grid(np.array([min(low, 0.0)]), np.array([max(high, 0.0)]), low_fixed)
    return float(_squared_errors(histogram, lows, highs, low_fixed)[0])


def _on_grid(lows: Floats, highs: Floats, low_fixed: float | None) -> tuple[Floats, Floats]:
    """Move both ends onto the points of a grid of 255 steps that holds 0."""
    steps = np.maximum(highs / _LEVELS - lows / _LEVELS, np.finfo(np.float32).tiny)
    zero_points = np.clip(np.rint(-lows / steps), 0, _LEVELS)
    if low_fixed is not None:
        steps = np.divide(-low_fixed, zero_points, out=steps, where=zero_points > 0)
    return -zero_points * steps, steps * (_LEVELS - zero_points)


def _squared_errors(
    histogram: Histogram, lows: Floats, highs: Floats, low_fixed: float | None
) -> Floats:
    """Expected squared error of the grids ``[lows, highs]``, each found from prefix sums."""
    if not histogram.total:
        return np.zeros_like(lows)
    counts = histogram.counts.astype(np.float64)
    edges = histogram.edges
    if histogram.zeros:
        counts[np.searchsorted(edges, 0.0, side="right") - 1] -= histogram.zeros
    # The outer bins are filled only as far as the values reach.
    centres = (np.maximum(edges[:-1], histogram.low) + np.minimum(edges[1:], histogram.high)) / 2
    unit = float(max(np.abs(centres).max(), np.finfo(np.float32).tiny))
    centres = centres / unit
    lows, highs = lows / unit, highs / unit
    half = (highs - lows) / (2 * _LEVELS)
    sums = [np.concatenate(([0.0], np.cumsum(counts * centres**p))) for p in range(3)]
    below = np.searchsorted(centres, lows - half)
    above = np.searchsorted(centres, highs + half)
    inside = sums[0][above] - sums[0][below]
    noise = inside * half**2 / 3
    if low_fixed is None:
        noise += _distances([part[below] for part in sums], lows)
    noise += _distances([part[-1] - part[above] for part in sums], highs)
    return np.asarray(np.maximum(noise, 0.0) / histogram.total * unit**2, np.float64)


def _distances(moments: list[Floats], ends: Floats) -> Floats:
    """Sum of squared distances to ``ends`` from the first three moments of what lies outside."""
    return np.maximum(moments[2] - 2 * ends * moments[1] + ends**2 * moments[0], 0.0)


def _exponent(low: float, high: float) -> int:
    """The least exponent whose bins cover ``[low, high]`` with 2048, and the magnitude with 2^30.

    Both conditions only tighten as a range grows, hence the order of a stream doesn't matter.
    """
    exponent = -1000
    if low or high:
        exponent = max(exponent, frexp(max(-low, high))[1] - 30)
    if low < high:
        exponent = max(exponent, frexp((high - low) / BINS)[1] - 1)
    while _bin(high, exponent) - _bin(low, exponent) >= BINS:
        exponent += 1
    return exponent


def _bin(value: float, exponent: int) -> int:
    return floor(value * 2.0**-exponent)
