"""What an output is: scores of classes, a sequence, a map, an embedding, or plain values."""

from collections.abc import Sequence
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

OutputKind = Literal["classes", "sequence", "map", "embedding", "values"]
"""Decides which agreement of an output is a figure that says something."""

_SEQUENCE_CLASSES: Final = 8
_MOST_CLASSES: Final = 20_000
_TOLERANCE: Final = 1e-2
_VECTOR_NAMES: Final = ("embed", "feature", "hidden", "pooler", "state")
_SCORE_NAMES: Final = ("logit", "prob", "class", "score", "softmax", "label")


def guess_kind(name: str, arrays: Sequence[NDArray[Any]]) -> OutputKind:
    """The kind of the output ``name``, judged by its values ``arrays`` for some samples.

    Whole numbers are classes; rows that sum to 1 are scores of classes, or of the steps of a
    sequence; four axes are a map, unless the last ones are all 1; rows of norm 1 are an
    embedding. The name decides where values don't.
    """
    if not arrays or arrays[0].dtype.kind != "f":
        return "classes"
    arrays = [squeeze_map(array) for array in arrays]
    rank = max(array.ndim for array in arrays)
    if rank >= 4:
        return "map"
    width = max(array.shape[-1] if array.ndim else 1 for array in arrays)
    if rank < 2 or width == 1:
        return "values"
    lowered = name.lower()
    probability = _is_probability(arrays)
    if rank == 3:
        # Names such as "scores" are no help here: detectors have them for their boxes.
        steps = probability or "logit" in lowered
        return "sequence" if steps and width >= _SEQUENCE_CLASSES else "embedding"
    if probability or any(part in lowered for part in _SCORE_NAMES):
        return "classes"
    vector = _is_unit_norm(arrays) or any(part in lowered for part in _VECTOR_NAMES)
    return "embedding" if vector or width > _MOST_CLASSES else "classes"


def squeeze_map(array: NDArray[Any]) -> NDArray[Any]:
    """A map of one place, ``(n, c, 1, 1)``, as the rows ``(n, c)`` that it is."""
    if array.ndim > 2 and array.shape[1] > 1 and set(array.shape[2:]) == {1}:
        return array.reshape(array.shape[:2])
    return array


def _is_probability(arrays: Sequence[NDArray[Any]]) -> bool:
    return all(
        array.size > 0
        and bool(np.all(array >= 0))
        and np.allclose(array.sum(axis=-1, dtype=np.float64), 1, atol=_TOLERANCE)
        for array in arrays
    )


def _is_unit_norm(arrays: Sequence[NDArray[Any]]) -> bool:
    return all(
        array.size > 0
        and np.allclose(np.linalg.norm(array.astype(np.float64), axis=-1), 1, atol=_TOLERANCE)
        for array in arrays
    )


def collapse(steps: Sequence[int] | NDArray[Any], blank: int = 0) -> list[int]:
    """A path of classes as the text it stands for: repeats merged, then blanks dropped.

    Source: connectionist temporal classification (Graves et al., 2006).
    """
    path = np.asarray(steps)
    if path.size == 0:
        return []
    starts = np.concatenate(([True], path[1:] != path[:-1]))
    return [int(step) for step in path[starts & (path != blank)]]
