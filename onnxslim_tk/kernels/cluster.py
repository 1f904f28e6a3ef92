"""Clusters of weights: shared values on the line, and shared vectors."""

from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

Floats = NDArray[np.float64]
# The limit of threads is the process's: two calls at once would put it back at the wrong time.
_ONE_AT_A_TIME = Lock()
_ROUNDS = 40
_POWERS = (1 / 3, 1.0, 0.0)
# Lloyd goes on after a swap, so even one that seems to lose a little can win.
_HOPE = 0.5


def kmeans_1d(
    values: NDArray[Any],
    clusters: int,
    weights: NDArray[Any] | None = None,
    bins: int = 65536,
    iterations: int = 100,
) -> Floats:
    """Centroids of ``values``, ascending, ``(k,)`` with ``1 <= k <= clusters``.

    ``values`` and ``weights`` (how much each value counts, not negative, ones if None) have the
    same shape. Where at most ``clusters`` values differ, they are the centroids. Otherwise Lloyd's
    iteration (``iterations`` at most) on a histogram of ``bins`` bins with exact means, from
    quantiles of the cube root of the density, which are optimal for many clusters (Panter and
    Dite, 1951) and other starts, and then swaps of cells that leave its local optima. Raises
    ValueError for no values, values that aren't finite, weights that are negative or all zero,
    and ``clusters < 1``.
    """
    if clusters < 1:
        raise ValueError(f"kmeans_1d: clusters must be at least 1, got {clusters}")
    points, masses = _checked(values, weights)
    points, masses = _points(points, masses, clusters, bins)
    if len(points) <= clusters:
        return points
    low, span = points[0], points[-1] - points[0]
    line = _Line((points - low) / span, masses)
    starts = (line.spread(clusters, power) for power in _POWERS)
    best = min((line.cluster(start, iterations) for start in starts), key=line.inertia)
    centroids: Floats = np.unique(best) * span + low
    return centroids


def nearest(values: NDArray[Any], centroids: NDArray[Any]) -> NDArray[np.int64]:
    """Index of the nearest centroid for every value, shape of ``values``; ties go to the lower.

    ``centroids`` is ``(k,)`` and ascending. Raises ValueError if there are none.
    """
    points = np.asarray(centroids, np.float64)
    if not points.size:
        raise ValueError("nearest: there must be at least one centroid")
    borders = points[:-1] + np.diff(points) / 2
    return np.searchsorted(borders, np.asarray(values, np.float64)).astype(np.int64, copy=False)


def kmeans_vectors(
    vectors: NDArray[Any], clusters: int, seed: int, weights: NDArray[Any] | None = None
) -> tuple[Floats, NDArray[np.int64]]:
    """Centroids ``(k, d)`` of ``vectors`` ``(n, d)`` and the code of each vector, ``(n,)``.

    ``k <= clusters``; where at most ``clusters`` vectors differ, they are the centroids.
    ``weights`` ``(n,)`` says how much each vector counts. k-means++ (Arthur and Vassilvitskii,
    2007) on one thread, so that the same seed gives the same bytes. Raises ValueError for no
    vectors, values that aren't finite and ``clusters < 1``.
    """
    points = np.asarray(vectors, np.float64)
    if clusters < 1:
        raise ValueError(f"kmeans_vectors: clusters must be at least 1, got {clusters}")
    if points.ndim != 2 or not points.size or not np.isfinite(points).all():
        raise ValueError(f"kmeans_vectors: vectors must be finite (n, d), got {points.shape}")
    distinct, codes = np.unique(points, axis=0, return_inverse=True)
    if len(distinct) <= clusters:
        return distinct, codes.reshape(-1).astype(np.int64)
    # Its import takes longer than all others of the package together.
    from sklearn.cluster import KMeans

    with _ONE_AT_A_TIME, threadpool_limits(limits=1):
        model = KMeans(clusters, n_init=1, random_state=seed).fit(points, sample_weight=weights)
    return np.asarray(model.cluster_centers_, np.float64), model.labels_.astype(np.int64)


class _Line:
    """Weighted points on the line, ascending, with the prefix sums that make Lloyd cheap."""

    def __init__(self, points: Floats, masses: Floats) -> None:
        self.points = points
        self.masses = masses
        self.sums = [np.concatenate(([0.0], np.cumsum(masses * points**p))) for p in range(3)]

    def spread(self, clusters: int, power: float) -> Floats:
        """Quantiles of ``density ** power``: 1 follows the mass, 0 the line, 1/3 both."""
        gaps = np.maximum(np.gradient(self.points), 1e-200)
        share = np.cumsum((self.masses / gaps) ** power * gaps)
        return np.interp((np.arange(clusters) + 0.5) / clusters, share / share[-1], self.points)

    def cluster(self, start: Floats, iterations: int) -> Floats:
        """Lloyd's iteration, then swaps (merge two cells, split another) while the error falls."""
        best = self._lloyd(start, iterations)
        error = self.inertia(best)
        swaps = len(best)
        for _ in range(_ROUNDS):
            proposal = self._swapped(best, swaps)
            if proposal is None:
                break
            moved = self._lloyd(proposal, iterations)
            moved_error = self.inertia(moved)
            if moved_error < error:
                best, error = moved, moved_error
            elif swaps == 1:
                break
            else:
                swaps = max(1, min(swaps, len(best) // 2) // 4)
        mass, mean, _ = self._cells(best)
        return mean[mass > 0]

    def _lloyd(self, centroids: Floats, iterations: int) -> Floats:
        for _ in range(iterations):
            moved = np.sort(self._cells(centroids)[1])
            if np.array_equal(moved, centroids):
                break
            centroids = moved
        return centroids

    def inertia(self, centroids: Floats) -> float:
        """Squared distance of the mass to the means of the cells."""
        return float(self._cells(centroids)[2].sum())

    def _cells(self, centroids: Floats) -> tuple[Floats, Floats, Floats]:
        """Mass, mean and squared distance to the mean of every cell."""
        edges = self._edges(centroids)
        mass, first, second = (np.diff(part[edges]) for part in self.sums)
        mean = np.divide(first, mass, out=centroids.astype(np.float64), where=mass > 0)
        return mass, mean, np.maximum(second - first * mean, 0.0)

    def _edges(self, centroids: Floats) -> NDArray[np.int64]:
        borders = np.searchsorted(self.points, (centroids[1:] + centroids[:-1]) / 2, side="right")
        return np.concatenate(([0], borders, [len(self.points)])).astype(np.int64, copy=False)

    def _swapped(self, centroids: Floats, swaps: int) -> Floats | None:
        """The centroids after at most ``swaps`` swaps that promise a gain, None without one."""
        mass, mean, _ = self._cells(centroids)
        gain, halves = self._splits(centroids)
        pairs = np.maximum(mass[:-1] + mass[1:], np.finfo(np.float64).tiny)
        cost = mass[:-1] * mass[1:] / pairs * np.diff(mean) ** 2
        splits = iter(np.argsort(-gain, kind="stable")[:swaps])
        taken: set[int] = set()
        split, dropped, merged = [], [], []
        for left in np.argsort(cost, kind="stable"):
            if left in taken or left + 1 in taken:
                continue
            cell = next((k for k in splits if k not in taken | {left, left + 1}), None)
            if cell is None or gain[cell] <= _HOPE * cost[left]:
                break
            taken |= {cell, left, left + 1}
            split.append(cell)
            dropped += [left, left + 1]
            merged.append((mass[left : left + 2] @ mean[left : left + 2]) / pairs[left])
        if not split:
            return None
        kept = np.delete(mean, split + dropped)
        return np.sort(np.concatenate((kept, np.array(merged), halves[split].ravel())))

    def _splits(self, centroids: Floats) -> tuple[Floats, Floats]:
        """What the best split of every cell gains, ``(k,)``, and the two means, ``(k, 2)``."""
        edges = self._edges(centroids)
        cells = np.repeat(np.arange(len(centroids)), np.diff(edges))
        mass, first = self.sums[0][edges], self.sums[1][edges]
        whole, total = np.diff(mass)[cells], np.diff(first)[cells]
        left, moment = self.sums[0][1:] - mass[cells], self.sums[1][1:] - first[cells]
        right = whole - left
        apart = left * right > 0
        lower = np.divide(moment, left, out=np.zeros_like(left), where=apart)
        upper = np.divide(total - moment, right, out=np.zeros_like(left), where=apart)
        gains = np.where(apart, left * right / whole * (upper - lower) ** 2, 0.0)
        gains[edges[1:] - 1] = 0.0
        gain = np.zeros(len(centroids))
        halves = np.repeat(centroids[:, None], 2, axis=1)
        np.maximum.at(gain, cells, gains)
        best = np.flatnonzero((gains > 0) & (gains == gain[cells]))
        halves[cells[best]] = np.stack((lower[best], upper[best]), axis=1)
        return gain, halves


def _checked(values: NDArray[Any], weights: NDArray[Any] | None) -> tuple[Floats, Floats]:
    points = np.asarray(values, np.float64).ravel()
    if not points.size:
        raise ValueError("kmeans_1d: there must be at least one value")
    if not np.isfinite(points.max() - points.min()):
        raise ValueError("kmeans_1d: values must be finite")
    if weights is None:
        return points, np.ones(points.size)
    masses = np.asarray(weights, np.float64).ravel()
    if masses.shape != points.shape:
        raise ValueError(f"kmeans_1d: {points.size} values but {masses.size} weights")
    if not np.isfinite(masses).all() or masses.min() < 0 or masses.max() <= 0:
        raise ValueError("kmeans_1d: weights must be finite, not negative and not all zero")
    counted = masses > 0
    return points[counted], masses[counted]


def _points(values: Floats, masses: Floats, clusters: int, bins: int) -> tuple[Floats, Floats]:
    """Few points that stand for ``values``: all that differ, or the means of the filled bins."""
    low, high = values.min(), values.max()
    if values.size > bins and high > low:
        codes = ((values - low) / (high - low) * (bins - 1)).astype(np.int32)
        mass = np.bincount(codes, weights=masses, minlength=bins).astype(np.float64)
        filled = mass > 0
        # Where outliers stretch the range, the rest falls into too few bins to tell it apart.
        if np.count_nonzero(filled) > 16 * clusters:
            first = np.bincount(codes, weights=masses * values, minlength=bins)
            return first[filled] / mass[filled], mass[filled]
    points, inverse = np.unique(values, return_inverse=True)
    return points, np.bincount(inverse.ravel(), weights=masses).astype(np.float64)
