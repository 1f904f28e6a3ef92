"""Models and files: what is read is opened and unpacked, what is written is packed and whole."""

import json
import os
import stat
from pathlib import Path
from typing import Final

import onnx
from google.protobuf.message import DecodeError, EncodeError

from onnxslim_tk.errors import ModelError
from onnxslim_tk.graph.check import check, drop_repeated_weights
from onnxslim_tk.graph.model import Model, from_proto, to_proto
from onnxslim_tk.packing import PackedTensor, pack, unpack
from onnxslim_tk.writing import write_pieces

_PROVENANCE: Final = "onnxslim_tk."
_LARGEST: Final = (1 << 31) - 1


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


def read_model(path: Path) -> bytes:
    """The bytes of a model file, its external data taken in; raises ModelError."""
    data = read_file(path)
    proto = _proto(data, path.name)
    plain = proto.ByteSize()
    _take_in(proto, path)
    if proto.ByteSize() == plain:
        return data
    try:
        whole: bytes = proto.SerializeToString(deterministic=True)
    except (EncodeError, ValueError) as error:
        raise ModelError(f"model: {path.name} and its external data take over 2 GB") from error
    return whole


def parse(data: bytes, path: Path | None = None) -> Model:
    """Open the bytes of a model file, packed or not.

    ``path`` says where external data lie. Raises ModelError for what is not a valid model.
    """
    proto = _proto(data, path.name if path else "the file")
    check(proto)
    drop_repeated_weights(proto)
    if path is not None:
        _take_in(proto, path)
    unpack(proto)
    return from_proto(proto, data)


def _proto(data: bytes, name: str) -> onnx.ModelProto:
    try:
        proto = onnx.ModelProto.FromString(data)
    except DecodeError as error:
        raise ModelError(f"model: {name} is not an ONNX file, or a damaged one") from error
    if not proto.HasField("graph"):
        raise ModelError(f"model: {name} is not an ONNX file: it holds no graph")
    return proto


def _take_in(proto: onnx.ModelProto, path: Path) -> None:
    try:
        onnx.external_data_helper.load_external_data_for_model(proto, str(path.parent))
    except (onnx.checker.ValidationError, OSError, ValueError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelError(
            f"model: the external data of {path.name} cannot be read: {first}"
        ) from error


def load(path: str | os.PathLike[str]) -> Model:
    """Open a model file for rewriting; packed weights come out dense.

    Raises ModelError for what is not a valid model.
    """
    return parse(read_file(Path(path)), Path(path))


def packed(model: Model, provenance: dict[str, str]) -> tuple[bytes, list[PackedTensor]]:
    """The model as the bytes of a file, packed, and what the packing changed.

    ``provenance`` goes into the model's metadata. Raises ModelError for more than 2 GB.
    """
    proto = to_proto(model)
    kept = [entry for entry in proto.metadata_props if not entry.key.startswith(_PROVENANCE)]
    kept = [onnx.StringStringEntryProto.FromString(e.SerializeToString()) for e in kept]
    del proto.metadata_props[:]
    proto.metadata_props.extend(kept)
    for key, value in provenance.items():
        proto.metadata_props.add(key=_PROVENANCE + key, value=value)
    changed = pack(proto)
    if proto.ByteSize() > _LARGEST:
        raise ModelError("model: the result takes over 2 GB, more than one file may hold")
    data: bytes = proto.SerializeToString(deterministic=True)
    return data, changed


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


def write_file(data: bytes, path: Path) -> None:
    """Write a model whole or not at all; raises ModelError."""
    write_pieces([data], path)


def save(model: Model, path: str | os.PathLike[str]) -> None:
    """Pack the model and write it whole or not at all; raises ModelError."""
    data, _ = packed(model, {})
    write_file(data, Path(path))
