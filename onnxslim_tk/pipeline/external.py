"""Data files beside a model: what is read stays in the model's folder, what is written is whole."""

import hashlib
import re
import stat
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Final

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto

from onnxslim_tk.errors import ModelError
from onnxslim_tk.graph.mapped import mapped
from onnxslim_tk.graph.stored import Stored, joined, joined_size
from onnxslim_tk.graph.weights import (
    LARGEST,
    Bytes,
    Weights,
    entry,
    is_apart,
    place,
    raw_size,
    refer,
    tensors,
)

_AT_ONCE: Final = 1 << 28
"""Bytes of a file from which on it is put together only as it is written."""
_PAGE: Final = 4096
_LINE: Final = 64
_OURS: Final = re.compile(r"\.[0-9a-f]{16}\.data")


def read_weights(proto: onnx.ModelProto, path: Path) -> Weights:
    """Map the external data of the model file at ``path`` into memory.

    Raises ModelError for data that aren't regular files inside the model's folder, or too short.
    """
    reader = _Reader(path)
    weights = Weights()
    for tensor in tensors(proto):
        if is_apart(tensor):
            weights.add(place(tensor), reader.read(tensor))
    return weights


def take_in(proto: onnx.ModelProto, weights: Weights) -> None:
    """Fill the tensors of ``proto`` that aren't initializers of its outermost graph, in place."""
    outermost = len(proto.graph.initializer)
    for position, tensor in enumerate(tensors(proto)):
        if position >= outermost:
            weights.fill(tensor)


class _Reader:
    """Maps each data file once."""

    def __init__(self, path: Path) -> None:
        self._model = path
        self._files: dict[str, Bytes] = {}

    def read(self, tensor: TensorProto) -> Bytes:
        location = entry(tensor, "location")
        if location not in self._files:
            self._files[location] = self._mapped(location)
        data = self._files[location]
        size = raw_size(tensor)
        offset, length = self._number(tensor, "offset", 0), self._number(tensor, "length", size)
        if length != size:
            raise self._wrong(f"{tensor.name!r} takes {size} bytes, but is said to have {length}")
        if offset + length > data.nbytes:
            raise self._wrong(
                f"{tensor.name!r} ends at byte {offset + length}, "
                f"but {location!r} has only {data.nbytes}"
            )
        return data[offset : offset + length]

    def _number(self, tensor: TensorProto, key: str, usual: int) -> int:
        text = entry(tensor, key)
        if not text:
            return usual
        if not (text.isascii() and text.isdecimal() and len(text) < 20):
            raise self._wrong(f"{tensor.name!r} has the {key} {text[:40]!r}, which is no number")
        return int(text)

    def _mapped(self, location: str) -> Bytes:
        path = self._confined(location)
        try:
            status = path.stat()
            if not stat.S_ISREG(status.st_mode):
                raise self._wrong(f"{location!r} is no regular file")
            if not status.st_size:
                return np.zeros(0, np.uint8)
            return mapped(path)
        except OSError as error:
            raise self._wrong(f"{location!r}: {error.strerror}") from error

    def _confined(self, location: str) -> Path:
        """Where ``location`` lies, if that is in the model's folder."""
        if not location or "\0" in location:
            raise self._wrong(f"the location {location!r} names no file")
        places = PurePosixPath(location), PureWindowsPath(location)
        if any(p.anchor for p in places) or any(".." in p.parts for p in places):
            raise self._wrong(f"{location!r} lies outside the model's folder")
        folder = self._model.parent.resolve()
        try:
            path = (folder / location).resolve(strict=True)
        except (OSError, RuntimeError) as error:
            reason = getattr(error, "strerror", None) or "its links never end"
            raise self._wrong(f"{location!r}: {reason}") from error
        if not path.is_relative_to(folder):
            raise self._wrong(f"{location!r} is a link that leads outside the model's folder")
        return path

    def _wrong(self, reason: str) -> ModelError:
        return ModelError(
            f"model: the external data of {self._model.name} cannot be read: {reason}"
        )


def laid_out(
    proto: onnx.ModelProto,
    weights: Weights,
    name: str,
    largest: int = LARGEST,
    at_once: int = _AT_ONCE,
) -> Stored:
    """The model as one file, or where it takes over ``largest`` bytes as a file with data beside.

    One file of over ``at_once`` bytes is put together only as it is written.

    ``name`` is that of the model's file; the data's file bears it with a hash of its content.
    Raises ModelError where what must lie in the file itself takes over 2 GB.
    """
    size = joined_size(proto, weights)
    if size <= min(largest, at_once):
        return Stored(bytes(joined(proto, weights).SerializeToString(deterministic=True)))
    if size <= largest:
        used = Weights()
        for tensor in proto.graph.initializer:
            if is_apart(tensor):
                used.add(place(tensor), weights.raw(tensor))
        return Stored(bytes(proto.SerializeToString(deterministic=True)), used, joined=True)
    placed, content, end = Weights(), hashlib.sha256(), 0
    apart: dict[str, list[TensorProto]] = {}
    for tensor in proto.graph.initializer:
        weights.lift(tensor)
        if is_apart(tensor):
            apart.setdefault(place(tensor), []).append(tensor)
    offsets: dict[str, int] = {}
    for key, (tensor, *_) in apart.items():
        raw = weights.raw(tensor)
        gap = padding(end, raw.nbytes)
        content.update(bytes(gap))
        for chunk in weights.chunks(tensor):
            content.update(chunk)
        offsets[key] = end + gap
        end += gap + raw.nbytes
    location = f"{name}.{content.hexdigest()[:16]}.data"
    for key, users in apart.items():
        raw = weights.raw(users[0])
        for tensor in users:
            refer(tensor, location, str(offsets[key]), str(raw.nbytes))
        placed.add(place(users[0]), raw)
    size = int(proto.ByteSize())
    if size > LARGEST:
        raise ModelError(f"model: {size} bytes beside its big weights, more than one file may hold")
    return Stored(bytes(proto.SerializeToString(deterministic=True)), placed)


def padding(end: int, size: int) -> int:
    """Bytes between ``end`` and the next tensor: big ones start on a page, to be mapped."""
    return -end % (_PAGE if size >= _PAGE else _LINE)


def data_file(stored: Stored) -> str:
    """Name of the data file that a model of :func:`laid_out` needs; empty for none."""
    if stored.joined:
        return ""
    return next((entry(tensor, "location") for tensor in stored.apart()), "")


def old_data(head: bytes, name: str) -> list[str]:
    """Names of the data files that belong to our earlier result ``name`` with content ``head``."""
    try:
        proto = onnx.ModelProto.FromString(head)
    except DecodeError:
        return []
    found = {entry(t, "location") for t in proto.graph.initializer if is_apart(t)}
    return sorted(n for n in found if n.startswith(name) and _OURS.fullmatch(n[len(name) :]))
