"""Models and files: what is read is opened and unpacked, what is written is packed and whole."""

import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import onnx
from google.protobuf.message import DecodeError

from onnxslim_tk.errors import ModelError
from onnxslim_tk.graph.check import check, drop_repeated_weights, type_attributes
from onnxslim_tk.graph.message import drop_listed_weights
from onnxslim_tk.graph.model import Model, from_proto, to_parts
from onnxslim_tk.graph.stored import Stored
from onnxslim_tk.packing import PackedTensor, pack, unpack
from onnxslim_tk.pipeline.external import (
    data_file,
    laid_out,
    old_data,
    padding,
    read_weights,
    take_in,
)
from onnxslim_tk.writing import alone_in, write_pieces

_PROVENANCE: Final = "onnxslim_tk."


def read_file(path: Path) -> bytes:
    """The bytes of a model file; raises ModelError where there is none to read."""
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise ModelError(f"model: {path} is a folder; an .onnx file is needed")
        # A pipe may never end, nor does a device.
        if not stat.S_ISREG(mode):
            raise ModelError(f"model: {path} is a pipe or a device; an .onnx file is needed")
        return path.read_bytes()
    except OSError as error:
        raise ModelError(f"model: {path} cannot be read: {error.strerror}") from error


def read_model(path: Path) -> Stored:
    """A model file with its external data mapped into memory; raises ModelError."""
    head = read_file(path)
    proto = _proto(head, path.name)
    return Stored(head, read_weights(proto, path), path)


def parse(data: bytes | Stored) -> Model:
    """Open a model, packed or not; raises ModelError for what is not a valid one."""
    stored = data if isinstance(data, Stored) else Stored(data)
    name = stored.path.name if stored.path else "the file"
    proto = _proto(stored.head, name)
    drop_repeated_weights(proto)
    weights = stored.weights.copy()
    take_in(proto, weights)
    if not stored.is_single:
        # Indices of sparse tensors may have lain outside.
        check(proto)
    drop_listed_weights(proto)
    for tensor in proto.graph.initializer:
        weights.lift(tensor)
    unpack(proto, weights)
    return from_proto(proto, stored, weights)


def _proto(data: bytes, name: str) -> onnx.ModelProto:
    try:
        proto = onnx.ModelProto.FromString(data)
    except DecodeError as error:
        raise ModelError(f"model: {name} is not an ONNX file, or a damaged one") from error
    if not proto.HasField("graph"):
        raise ModelError(f"model: {name} is not an ONNX file: it holds no graph")
    type_attributes(proto)
    check(proto)
    return proto


def load(path: str | os.PathLike[str]) -> Model:
    """Open a model file for rewriting; packed weights come out dense.

    Raises ModelError for what is not a valid model.
    """
    return parse(read_model(Path(path)))


def packed(
    model: Model, provenance: dict[str, str], name: str = "model.onnx"
) -> tuple[Stored, list[PackedTensor]]:
    """The model as it will lie in files, packed, and what the packing changed.

    ``provenance`` goes into the model's metadata, ``name`` is that of the file it is meant for.
    """
    proto, weights = to_parts(model)
    kept = [entry for entry in proto.metadata_props if not entry.key.startswith(_PROVENANCE)]
    kept = [onnx.StringStringEntryProto.FromString(e.SerializeToString()) for e in kept]
    del proto.metadata_props[:]
    proto.metadata_props.extend(kept)
    for key, value in provenance.items():
        proto.metadata_props.add(key=_PROVENANCE + key, value=value)
    changed = pack(proto, weights)
    return laid_out(proto, weights, name), changed


def unchanged(stored: Stored, name: str) -> Stored:
    """The same model as it will lie in files under ``name``."""
    if stored.is_single:
        return Stored(stored.head)
    proto = stored.proto()
    take_in(proto, stored.weights)
    return laid_out(proto, stored.weights.copy(), name)


def provenance(model: Model, version: str, seed: int, recipe: object) -> dict[str, str]:
    """What a result says of its making: hashes and settings, no paths."""
    return {
        "version": version,
        "source_sha256": model.source_sha256,
        "seed": str(seed),
        "recipe": json.dumps(recipe, separators=(",", ":"), sort_keys=True),
    }


def stored_provenance(model: Model) -> dict[str, str]:
    """What the metadata of a result say of its making; nothing for any other model."""
    return {
        entry.key.removeprefix(_PROVENANCE): entry.value
        for entry in model.header.metadata_props
        if entry.key.startswith(_PROVENANCE)
    }


def write_file(data: bytes | Stored, path: Path) -> None:
    """Write a model, each of its files whole or not at all; raises ModelError.

    Data that don't fit into one file are written and synced before the model that needs them;
    those of our earlier result of this name go after it.
    """
    stored = data if isinstance(data, Stored) else Stored(data)
    name = data_file(stored)
    if name or _old_data(path):
        # Of two runs, one would take away what the other's model is about to need.
        with alone_in(path.parent):
            _write_with_data(stored, path, name)
    else:
        _write_model(stored, path)


def _write_with_data(stored: Stored, path: Path, name: str) -> None:
    """Write the data file ``name``, where there is one, then the model; then the old data go."""
    old = _old_data(path)
    beside = path.parent / name if name else None
    known = beside is not None and beside.exists()
    try:
        if beside is not None:
            write_pieces(_data(stored), beside)
        _write_model(stored, path)
    except BaseException:
        if beside is not None and not known:
            beside.unlink(missing_ok=True)
        raise
    for gone in old:
        if gone != name:
            (path.parent / gone).unlink(missing_ok=True)


def _write_model(stored: Stored, path: Path) -> None:
    write_pieces(stored.pieces() if stored.joined else [stored.head], path)


def _old_data(path: Path) -> list[str]:
    return old_data(read_file(path), path.name) if path.is_file() else []


def _data(stored: Stored) -> Iterator[bytes | memoryview]:
    end = 0
    for tensor in stored.apart():
        size = stored.weights.raw(tensor).nbytes
        gap = padding(end, size)
        yield bytes(gap)
        yield from stored.weights.chunks(tensor)
        end += gap + size


def save(model: Model, path: str | os.PathLike[str]) -> None:
    """Pack the model and write it whole or not at all; raises ModelError."""
    stored, _ = packed(model, {}, Path(path).name)
    write_file(stored, Path(path))
