"""Samples in numpy archives: one file with many samples, or one file a sample."""

import lzma
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from onnxslim_tk.errors import CalibrationError
from onnxslim_tk.measure.feeds import Labels, LazyFeeds, cast, check_shape, group_labels, spell
from onnxslim_tk.measure.runtime import Feed, TensorInfo

LABELS: Final = "labels"

_MOST_BYTES: Final = 1 << 33
_MOST_RATIO: Final = 200
# Arrays of zeros are many times smaller in an archive, and still no bomb.
_SURELY_HARMLESS: Final = 1 << 26
# numpy, zipfile and the decompressors below them have no common root for broken files.
_FAILURES: Final = (
    *(OSError, ValueError, EOFError, TypeError, SyntaxError, RuntimeError, LookupError),
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, tokenize.TokenError),
)


def read_archive(path: Path, inputs: Sequence[TensorInfo]) -> tuple[Sequence[Feed], Labels | None]:
    """The samples of one ``.npz`` whose keys are input names and, if known, ``labels``.

    The first axis counts the samples and sample i is ``array[i:i + 1]``; an input with a fixed
    first dimension of B takes B rows a sample. An array with one axis more than its input is
    ``array[i]`` in sample i, and a single number serves a scalar input in every sample.
    Raises CalibrationError for names, types, shapes or lengths that don't fit.
    """
    arrays, labels = _load(path, inputs)
    shared = {name: array for name, array in arrays.items() if array.ndim == 0}
    rows: dict[str, int] = {}
    stacks: dict[str, NDArray[Any]] = {}
    for info in inputs:
        if info.name in shared:
            check_shape((), info, path.name)
        else:
            array = arrays[info.name]
            rows[info.name] = _rows_of_a_sample(array, info)
            stacks[info.name] = _stack(array, rows[info.name], info, path.name)
    # The whole arrays must be of one length too where they're cut alike.
    lengths = {(len(stacks[name]), rows[name], len(arrays[name])) for name in stacks}
    if len({n for n, _, _ in lengths}) > 1 or len({r for _, r, _ in lengths}) < len(lengths):
        found = ", ".join(f"{name!r} {len(arrays[name])}" for name in stacks)
        raise CalibrationError(
            f"samples: {path.name}: all inputs must have the same number of samples, got {found}"
        )
    count = len(next(iter(stacks.values()))) if stacks else 1
    if labels is not None:
        labels = group_labels(labels, count, max(rows.values(), default=1), path.name)

    def read(index: int) -> Feed:
        # A row of a vector is a bare number to numpy.
        return shared | {name: np.asarray(stack[index]) for name, stack in stacks.items()}

    return LazyFeeds(count, read), labels


def read_archives(
    paths: Sequence[Path], inputs: Sequence[TensorInfo]
) -> tuple[Sequence[Feed], Labels | None]:
    """Samples of one ``.npz`` each, whose arrays go in as they are, so that shapes may change.

    ``labels``, where known, must be in every file; they are stacked, whole numbers of unequal
    length after padding with -1. Raises CalibrationError for what doesn't fit; the feeds of
    all files but the first are checked when they are read.
    """

    def read(index: int) -> Feed:
        path = paths[index]
        arrays, _ = _load(path, inputs)
        for info in inputs:
            check_shape(arrays[info.name].shape, info, path.name)
        return arrays

    labelled = [path for path in paths if _has_labels(path, inputs)]
    if not labelled:
        return LazyFeeds(len(paths), read), None
    if len(labelled) < len(paths):
        missing = next(path for path in paths if path not in set(labelled))
        raise CalibrationError(
            f"samples: {missing.name}: {LABELS!r} is missing, other files have it"
        )
    return LazyFeeds(len(paths), read), _join([_load_labels(path) for path in paths])


def _rows_of_a_sample(array: NDArray[Any], info: TensorInfo) -> int:
    """How many rows of ``array`` a sample takes; 0 when it is a row without its axis."""
    if array.ndim == len(info.shape) + 1:
        return 0
    first = info.shape[0] if info.shape else None
    return first if isinstance(first, int) and first > 0 else 1


def _stack(array: NDArray[Any], rows: int, info: TensorInfo, source: str) -> NDArray[Any]:
    """``array`` with the samples along the first axis, without the rows that fill none."""
    check_shape((rows, *array.shape[1:]) if rows else array.shape[1:], info, source)
    count = len(array) // max(rows, 1)
    if count == 0:
        raise CalibrationError(
            f"samples: {source}: input {info.name!r} takes {max(rows, 1)} rows a sample, "
            f"got {len(array)}"
        )
    return array[: count * rows].reshape(count, rows, *array.shape[1:]) if rows else array


def _load(
    path: Path, inputs: Sequence[TensorInfo]
) -> tuple[dict[str, NDArray[Any]], Labels | None]:
    needed = [info.name for info in inputs]
    with _open(path) as archive:
        found = set(archive.files)
        if not set(needed) <= found <= {*needed, LABELS}:
            raise CalibrationError(
                f"samples: {path.name}: the arrays must be named {_listed(needed)} "
                f"and, if known, {LABELS!r}, got {_listed(archive.files)}"
            )
        arrays = {
            info.name: cast(_member(archive, info.name, path), info, path.name) for info in inputs
        }
        labels = None
        if LABELS in found and LABELS not in needed:
            labels = _member(archive, LABELS, path)
    return arrays, labels


def _has_labels(path: Path, inputs: Sequence[TensorInfo]) -> bool:
    if LABELS in {info.name for info in inputs}:
        return False
    with _open(path) as archive:
        return LABELS in archive.files


def _load_labels(path: Path) -> Labels:
    with _open(path) as archive:
        return _member(archive, LABELS, path)


def _open(path: Path) -> Any:
    # Without pickle a file can't run code; numpy would take a plain array or a pickle, too.
    try:
        if zipfile.is_zipfile(path):
            return np.load(path, allow_pickle=False)
    except _FAILURES as error:
        raise CalibrationError(f"samples: {path.name} cannot be read: {error}") from error
    raise CalibrationError(f"samples: {path.name} must be an archive made by numpy.savez, it isn't")


def _member(archive: Any, name: str, path: Path) -> NDArray[Any]:
    try:
        _check_member(archive, name, path)
        array = archive[name]
    except _FAILURES as error:
        if "allow_pickle" in str(error):
            raise CalibrationError(
                f"samples: {path.name}: {name!r} holds Python objects, which aren't read because "
                "they could run code; save arrays of numbers or text"
            ) from error
        raise CalibrationError(f"samples: {path.name}: {name!r} cannot be read: {error}") from error
    if not isinstance(array, np.ndarray):
        raise CalibrationError(f"samples: {path.name}: {name!r} must be an array, it isn't")
    return array


def _check_member(archive: Any, name: str, path: Path) -> None:
    """Raise CalibrationError for an array that is far more than the file holds."""
    entry = archive.zip.getinfo(f"{name}.npy" if f"{name}.npy" in archive.zip.namelist() else name)
    size, stored = entry.file_size, max(entry.compress_size, 1)
    if size > _MOST_BYTES or (size > _SURELY_HARMLESS and size / stored > _MOST_RATIO):
        raise CalibrationError(
            f"samples: {path.name}: {name!r} must unpack to at most {_MOST_BYTES} bytes and "
            f"{_MOST_RATIO} times its size, it says {size} of {stored}"
        )
    with archive.zip.open(entry) as stream:
        if stream.read(len(npy.MAGIC_PREFIX)) != npy.MAGIC_PREFIX:
            return
    with archive.zip.open(entry) as stream:
        version = npy.read_magic(stream)
        reader = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, _, dtype = reader(stream)
        # numpy would take the memory that the header asks for before it looks at the rest.
        if not dtype.hasobject and prod(shape) * dtype.itemsize > size:
            raise CalibrationError(
                f"samples: {path.name}: {name!r} must hold the {spell(shape)} elements that it "
                f"announces, it has {size} bytes"
            )


def _join(labels: Sequence[Labels]) -> Labels:
    # A file saved as one row of a set keeps that row's axis; without it, the set's shape returns.
    if all(label.ndim and len(label) == 1 for label in labels):
        labels = [label[0] for label in labels]
    if len({label.shape for label in labels}) == 1:
        return np.stack(labels)
    if any(label.ndim != 1 or label.dtype.kind not in "iu" for label in labels):
        shapes = _listed(sorted({str(label.shape) for label in labels}))
        raise CalibrationError(
            "samples: labels must have one shape in all files unless they are rows of whole "
            f"numbers, got {shapes}"
        )
    joined = np.full((len(labels), max(map(len, labels))), -1, np.int64)
    for row, label in zip(joined, labels, strict=True):
        row[: len(label)] = label
    return joined


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
