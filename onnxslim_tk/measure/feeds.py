"""Feeds that are read when they are asked for, and arrays that must fit an input."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from onnxslim_tk.errors import CalibrationError
from onnxslim_tk.measure.runtime import Feed, TensorInfo

Labels = NDArray[Any]
"""Labels, whose first axis goes with the feeds."""


@dataclass(frozen=True, slots=True)
class LazyFeeds(Sequence[Feed]):
    """``size`` feeds, of which ``read(i)`` makes the i-th anew on each access."""

    size: int
    read: Callable[[int], Feed]

    def __len__(self) -> int:
        return self.size

    @overload
    def __getitem__(self, index: int) -> Feed: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Feed]: ...
    def __getitem__(self, index: int | slice) -> Feed | Sequence[Feed]:
        if isinstance(index, slice):
            chosen = range(self.size)[index]
            return LazyFeeds(len(chosen), lambda i: self.read(chosen[i]))
        return self.read(range(self.size)[index])


def cast(array: NDArray[Any], info: TensorInfo, source: str) -> NDArray[Any]:
    """``array`` in the type of the input ``info``: within a kind, and only when values fit.

    Floats become floats, integers integers, text strings; a float that would overflow and an
    integer out of range raise CalibrationError, as does any change of kind: whether pixels
    0..255 are to be scaled, for one, only the user knows.
    """
    takes = "text" if info.dtype == object else str(info.dtype)
    if info.dtype is None:
        raise CalibrationError(
            f"samples: input {info.name!r} must be a tensor that numpy can hold, it isn't"
        )
    if array.dtype == info.dtype:
        return array
    kinds = {array.dtype.kind, info.dtype.kind}
    refusal = f"samples: {source}: input {info.name!r} takes {takes}, got {array.dtype}"
    if kinds == {"f"}:
        with np.errstate(over="ignore"):
            result = array.astype(info.dtype)
        if not np.array_equal(np.isfinite(array), np.isfinite(result)):
            raise CalibrationError(f"{refusal} with values beyond its range")
        return result
    if kinds <= {"i", "u"}:
        limits = np.iinfo(info.dtype)
        if array.size and not (limits.min <= int(array.min()) and int(array.max()) <= limits.max):
            raise CalibrationError(f"{refusal} with values beyond its range")
        return array.astype(info.dtype)
    if kinds == {"U", "O"}:
        return array.astype(info.dtype)
    raise CalibrationError(refusal)


def check_shape(shape: tuple[int, ...], info: TensorInfo, source: str) -> None:
    """Raise CalibrationError unless ``shape`` agrees with the fixed dimensions of ``info``."""
    # () also stands for an unknown rank.
    if info.shape == ():
        return
    fits = len(shape) == len(info.shape) and all(
        not isinstance(wanted, int) or wanted == got
        for wanted, got in zip(info.shape, shape, strict=True)
    )
    if not fits:
        raise CalibrationError(
            f"samples: {source}: input {info.name!r} takes the shape {spell(info.shape)}, "
            f"got {spell(shape)}"
        )


def spell(shape: tuple[int | str | None, ...]) -> str:
    """A shape as people write it, ``?`` for a dimension without number or name."""
    return "(" + ", ".join("?" if d is None else str(d) for d in shape) + ")"


def group_labels(labels: Labels, count: int, rows: int, source: str) -> Labels:
    """Labels ``(n, ...)`` for ``count`` feeds of ``rows`` rows: ``(count, rows, ...)``.

    They stay as they are when there is one a feed; the remainder that fills no feed goes.
    """
    if labels.ndim and len(labels) == count:
        return labels
    if labels.ndim and rows > 1 and len(labels) // rows == count:
        return labels[: count * rows].reshape(count, rows, *labels.shape[1:])
    got = len(labels) if labels.ndim else "a single one"
    raise CalibrationError(f"samples: {source}: {count * rows} labels are needed, got {got}")
