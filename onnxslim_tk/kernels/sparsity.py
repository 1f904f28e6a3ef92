"""Which weights go: the smallest ones."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


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
