"""Codebooks on the int8 grid: entries that are integers, and the scales that they meet."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxslim_tk.kernels.cluster import kmeans_1d, kmeans_vectors, nearest
from onnxslim_tk.kernels.rounding import WEIGHT_BITS, largest_code

Floats = NDArray[np.float64]
TOP = largest_code(WEIGHT_BITS)
_FACTORS = np.linspace(0.75, 1.3, 12)
_CHUNK = 1 << 20
_MOST_VECTORS = 1 << 15


def codebook(
    values: Floats, clusters: int, weights: Floats | None = None, keep_zero: bool = False
) -> Floats:
    """At most ``clusters`` entries for ``values``, ascending, ``(k,)``.

    ``weights`` says how much each value counts. With ``keep_zero`` one entry is 0, and values
    that are 0 have no say in the others.
    """
    points, masses = values.ravel(), None if weights is None else weights.ravel()
    if not keep_zero:
        return kmeans_1d(points, clusters, masses)
    counted = points != 0
    if not counted.any() or clusters < 2:
        return np.zeros(1)
    masses = None if masses is None else masses[counted]
    return np.unique(np.append(kmeans_1d(points[counted], clusters - 1, masses), 0.0))


def vector_codebook(vectors: Floats, clusters: int, seed: int) -> Floats:
    """At most ``clusters`` entries ``(k, d)`` for ``vectors`` ``(n, d)``.

    Of many vectors some, drawn without repetition, stand for all.
    """
    if len(vectors) > _MOST_VECTORS:
        rng = np.random.default_rng(seed)
        vectors = vectors[np.sort(rng.choice(len(vectors), _MOST_VECTORS, replace=False))]
    return kmeans_vectors(vectors, clusters, seed)[0]


def on_integers(entries: Floats) -> tuple[Floats, float]:
    """``entries`` as whole numbers in [-63, 63], doubles dropped, and what 1 stands for."""
    unit = float(np.abs(entries).max()) / TOP
    if unit == 0.0:
        return np.zeros_like(entries[:1]), 1.0
    # Adding 0 turns -0 into 0.
    return np.unique(np.rint(entries / unit) + 0.0, axis=0), unit


def nearest_codes(values: Floats, entries: Floats) -> NDArray[np.int64]:
    """Index of the nearest entry for every value; for entries ``(k, d)``, for every d in a row.

    Of the shape of ``values``, or ``(n / d,)`` for vectors; the number n of values must be a
    multiple of d.
    """
    if entries.ndim == 1:
        return nearest(values, entries)
    vectors = values.reshape(-1, entries.shape[1])
    norms = (entries**2).sum(1)
    codes = np.empty(len(vectors), np.int64)
    step = max(1, _CHUNK // len(entries))
    for first in range(0, len(vectors), step):
        part = slice(first, first + step)
        codes[part] = np.argmin(norms - 2.0 * (vectors[part] @ entries.T), axis=1)
    return codes


def nearest_entries(values: Floats, entries: Floats) -> Floats:
    """What :func:`nearest_codes` points at, in the shape of ``values``."""
    return np.asarray(entries[nearest_codes(values, entries)], np.float64).reshape(values.shape)


def search_scales(
    matrix: Floats, entries: Floats, scales: Floats, weights: Floats | None = None
) -> Floats:
    """Per row the best of a dozen multiples (0.75 to 1.3) of ``scales``, ``(n,)``.

    Best by squared error of the nearest ``scale * entry``; ``matrix`` is ``(n, d)``, ``entries``
    ``(k,)``, and ``weights`` of the shape of ``matrix`` says how much each value counts.
    """
    found = scales.astype(np.float64)
    step = max(1, _CHUNK // max(1, matrix.shape[1]))
    for first in range(0, len(matrix), step):
        part = slice(first, first + step)
        values, best = matrix[part], np.full(len(matrix[part]), np.inf)
        for factor in _FACTORS:
            tried = scales[part] * factor
            rebuilt = nearest_entries(values / tried[:, None], entries) * tried[:, None]
            errors = (rebuilt - values) ** 2
            error = (errors if weights is None else errors * weights[part]).sum(1)
            better = error < best
            best[better] = error[better]
            found[part][better] = tried[better]
    return found


def storable_scales(scales: NDArray[Any]) -> NDArray[np.float32]:
    """``scales``, those that lie in the range of float16 as it holds them exactly; float32.

    Half the bytes for a relative change of 2^-12, far below any codebook's error.
    """
    half = np.finfo(np.float16)
    held = (scales >= half.tiny) & (scales <= half.max)
    narrow = np.clip(scales, half.tiny, half.max).astype(np.float16)
    return np.where(held, narrow.astype(np.float32), scales.astype(np.float32))
