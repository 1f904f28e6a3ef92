"""What earlier runs found, by content: entries in a folder of bounded size."""

import hashlib
import json
import os
import platform
import zipfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from onnxslim_tk.errors import OnnxSlimError, RecipeError
from onnxslim_tk.measure.runtime import Feed
from onnxslim_tk.writing import replacing

Arrays = Mapping[str, NDArray[Any]]
Found = TypeVar("Found")

_MOST_BYTES: Final = 2_000_000_000
_LIBRARIES: Final = ("numpy", "onnx", "onnx-graphsurgeon", "onnxruntime", "scikit-learn", "scipy")
# An entry is somebody's file: whatever is wrong with it, it is no entry.
_DAMAGE: Final = (
    OSError,
    ValueError,
    KeyError,
    TypeError,
    EOFError,
    NotImplementedError,
    zipfile.BadZipFile,
    DecodeError,
    OnnxSlimError,
)


class Cache:
    """Arrays under keys, in a folder that holds at most ``most`` bytes.

    What was asked for longest ago goes first. Runs may share a folder: entries appear whole or
    not at all. Nothing in an entry is ever executed, as unpickling would; one that is damaged or
    foreign counts as missing, and so does a folder that can't be written.
    """

    def __init__(self, folder: Path, most: int = _MOST_BYTES) -> None:
        if most < 0:
            raise RecipeError(f"cache: its size must not be negative, got {most}")
        self.folder, self.most = folder, most

    def load(self, key: str, decode: Callable[[Arrays], Found]) -> Found | None:
        """What ``decode`` makes of the entry ``key``, None where there is no sound one."""
        place = self._place(key)
        try:
            with np.load(place, allow_pickle=False) as archive:
                found = decode({name: archive[name] for name in archive.files})
            os.utime(place)
        except _DAMAGE:
            return None
        return found

    def save(self, key: str, arrays: Arrays) -> None:
        """Keep ``arrays`` under ``key``, if they take no more than a quarter of the folder."""
        if 4 * sum(array.nbytes for array in arrays.values()) > self.most:
            return
        place = self._place(key)
        with suppress(OSError):
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            place.parent.mkdir(mode=0o700, exist_ok=True)
            with replacing(place) as file:
                np.savez(file, **arrays)  # type: ignore[arg-type]
            self._trim()

    def _place(self, key: str) -> Path:
        # Small folders are looked through fast.
        return self.folder / key[:2] / f"{key}.npz"

    def _trim(self) -> None:
        """Remove the entries that were not used for longest, and what killed writers left."""
        found = []
        for path in self.folder.glob("??/*"):
            # Another run may be at the same.
            with suppress(OSError):
                entry = path.stat()
                found.append((entry.st_mtime, entry.st_size, path))
        held = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if held <= self.most:
                return
            with suppress(OSError):
                path.unlink()
            held -= size


def key_of(*parts: object) -> str:
    """The key of what follows from ``parts``, which tell all by their ``repr``."""
    return hashlib.sha256("\0".join(map(repr, parts)).encode()).hexdigest()


def digest(feeds: Sequence[Feed]) -> str:
    """What tells samples from others: names, types, shapes and values of all."""
    found = hashlib.sha256()
    for feed in feeds:
        for name, value in sorted(feed.items()):
            array = np.ascontiguousarray(value)
            found.update(repr((name, array.dtype.str, array.shape)).encode())
            found.update(repr(array.tolist()).encode() if array.dtype == object else array.data)
    return found.hexdigest()


@cache
def surroundings() -> str:
    """What results hang on beside model, samples and settings: code, libraries, processor."""
    root = Path(__file__).parents[1]
    code = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        code.update(path.read_bytes())
    extensions = np.show_config(mode="dicts") or {}
    return key_of(
        code.hexdigest(),
        [version(name) for name in _LIBRARIES],
        platform.system(),
        platform.machine(),
        extensions.get("SIMD Extensions"),
    )


def as_text(data: object) -> NDArray[np.uint8]:
    """JSON data as an array."""
    return np.frombuffer(json.dumps(data).encode(), np.uint8)


def from_text(array: NDArray[Any]) -> Any:
    """The JSON data in an array; raises ValueError."""
    return json.loads(array.tobytes())
