"""Files mapped into memory: what was read of them can go, and where an array lies is known."""

import mmap
from dataclasses import dataclass
from pathlib import Path
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Span:
    """Where a file lies in memory."""

    path: Path
    address: int
    size: int


_spans: WeakKeyDictionary[mmap.mmap, Span] = WeakKeyDictionary()


def mapped(path: Path) -> Bytes:
    """The bytes of a file, which take no memory until they are read; raises OSError."""
    with path.open("rb") as file:
        opened = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    array = np.frombuffer(opened, np.uint8)
    _spans[opened] = Span(path, _address(array), array.nbytes)
    return array


def release_pages() -> None:
    """Take what was read of mapped files out of memory; whoever needs it again, reads it anew."""
    for opened in list(_spans):
        if hasattr(opened, "madvise"):
            opened.madvise(mmap.MADV_DONTNEED)


def place_in_file(raw: Bytes) -> tuple[Path, int] | None:
    """The mapped file that the bytes ``raw`` are part of, and from where on; None for others."""
    address = _address(raw)
    for span in _spans.values():
        if span.address <= address and address + raw.nbytes <= span.address + span.size:
            return span.path, address - span.address
    return None


def _address(array: Bytes) -> int:
    return int(array.__array_interface__["data"][0])
