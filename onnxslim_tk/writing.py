"""Files that are written whole or not at all, whatever ends the program."""

import errno
import os
import re
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from stat import S_IMODE
from typing import BinaryIO, Final

from onnxslim_tk.errors import ModelError

_MARK: Final = ".onnxslim-"
# Where the system can tell it, the rights that count are not those of the user who logged in.
_EFFECTIVE: Final = os.access in os.supports_effective_ids


def write_pieces(pieces: Iterable[bytes | memoryview], path: Path) -> None:
    """Write a model's file; raises ModelError, with nothing changed, where that fails."""
    try:
        with replacing(path) as file:
            for piece in pieces:
                file.write(piece)
    except OSError as error:
        raise ModelError(f"model: {path} cannot be written: {error.strerror}") from error


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """An empty file that takes the place of ``path`` when the block ends without an exception.

    It lies beside ``path``, or beside what a link there points to, and keeps the permissions of
    a file that it replaces. What killed writers left beside ``path`` is removed. A pipe or a
    device is written to as it is. Raises OSError where nothing can be written.
    """
    check_place(path)
    place = Path(os.path.realpath(path))
    if place.exists() and not place.is_file():
        with open(place, "wb") as device:
            yield device
        return
    _remove_leftovers(place)
    file = _locked_file(place)
    try:
        with file:
            yield file
            file.flush()
            with suppress(FileNotFoundError):
                os.chmod(file.name, S_IMODE(place.stat().st_mode))
            os.fsync(file.fileno())
            if os.name == "nt":
                file.close()
            os.replace(file.name, place)
    finally:
        # Gone by now, unless something came between.
        Path(file.name).unlink(missing_ok=True)
    _sync_folder(place.parent)


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """No other run is in such a block with this folder, where the system has locks of folders."""
    handle: int | None = None
    if os.name == "posix":
        with suppress(OSError):
            handle = os.open(folder, os.O_RDONLY)
            _lock(handle, wait=True)
    try:
        yield
    finally:
        if handle is not None:
            os.close(handle)


def check_place(path: Path) -> None:
    """Raise OSError where nothing can be written to ``path``: a folder, or read-only."""
    place = Path(os.path.realpath(path))
    if place.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    # A rename needs no right to the file itself, but a read-only file is meant to stay.
    needed = [(place, os.W_OK)] if place.exists() else []
    if place.is_file() or not needed:
        needed.append((place.parent, os.W_OK | os.X_OK))
    for where, right in needed:
        if where.exists() and not os.access(where, right, effective_ids=_EFFECTIVE):
            raise PermissionError(errno.EACCES, f"no permission to write to {where}", str(path))


def _locked_file(place: Path) -> BinaryIO:
    """A new file beside ``place``, locked as long as it is open."""
    while True:
        name = place.with_name(f".{place.name}{_MARK}{secrets.token_hex(4)}")
        file = open(name, "xb")  # noqa: SIM115
        # A system without locks never takes it for a leftover either.
        with suppress(OSError):
            _lock(file, wait=True)
        # Another run may have removed it before it was locked.
        if name.exists():
            return file
        file.close()


def _remove_leftovers(place: Path) -> None:
    """Remove the files of writers that died: nobody holds their lock any more."""
    ours = re.compile(re.escape(f".{place.name}{_MARK}") + "[0-9a-f]{8}")
    with suppress(OSError), os.scandir(place.parent) as entries:
        for entry in entries:
            if ours.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                _remove_unlocked(entry.path)


def _remove_unlocked(path: str) -> None:
    # One that is locked, or gone by now, is another's.
    with suppress(OSError):
        if os.name == "posix":
            with open(path, "rb+") as file:
                _lock(file, wait=False)
                os.unlink(path)
        else:
            # There no file can be removed that is open.
            os.unlink(path)


def _lock(file: BinaryIO | int, wait: bool) -> None:
    if os.name == "posix":
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)


def _sync_folder(folder: Path) -> None:
    # The file is whole in any case; some systems sync no folder, and Windows opens none.
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
