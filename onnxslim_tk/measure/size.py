"""How big a model is: bytes, bytes once zipped, parameters and multiply-accumulates."""

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from math import prod
from typing import Final

import numpy as np

from onnxslim_tk.graph.edit import constants
from onnxslim_tk.graph.layers import layers
from onnxslim_tk.graph.model import Model
from onnxslim_tk.graph.stored import Stored

_SAMPLED: Final = 1 << 28
"""Bytes of a model from which on not all of it is zipped, but pieces from all over it."""
_PIECE: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Size:
    """Figures of one file.

    ``gzip_bytes`` is what deflate (level 6) leaves, of models above 256 MB reckoned from 64 MB
    or more of it, a megabyte here and there; ``parameters`` counts values that a run
    computes with, as they are after decoding; ``macs`` is for one run of the first sample, None
    where shapes are unknown, layers inside bodies not counted.
    """

    file_bytes: int
    gzip_bytes: int
    parameters: int
    macs: int | None


def size_of(data: bytes | Stored, model: Model, shapes: Mapping[str, tuple[int, ...]]) -> Size:
    """The figures of the files of ``data``, which open as ``model``."""
    counted = [layer.macs(shapes) for layer in layers(model) if not layer.path]
    known = [macs for macs in counted if macs is not None]
    return Size(
        file_bytes=len(data),
        gzip_bytes=_zipped(data),
        parameters=parameters(model),
        macs=sum(known) if shapes and len(known) == len(counted) else None,
    )


def _zipped(data: bytes | Stored) -> int:
    packer = zlib.compressobj(6)
    pieces = [data] if isinstance(data, bytes) else data.pieces()
    step = 1 if len(data) < _SAMPLED else 4 * len(data) // _SAMPLED
    parts = (memoryview(p)[k : k + _PIECE] for p in pieces for k in range(0, len(p), _PIECE))
    taken = zipped = 0
    for part in islice(parts, 0, None, step):
        taken += len(part)
        zipped += len(packer.compress(part))
    return round((zipped + len(packer.flush())) * len(data) / max(taken, 1))


def parameters(model: Model) -> int:
    """Number of values in constants that hold numbers, not shapes, indices or switches."""
    kinds = {np.dtype(t) for t in (np.float16, np.float32, np.float64, np.int8, np.uint8)}
    return sum(
        prod(tensor.shape) for tensor in constants(model) if tensor.dtype in kinds and tensor.shape
    )
