"""Fields of 1, 2 or 4 bits packed into bytes, the first field in the lowest bits."""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def pack_bits(codes: NDArray[Any], bits: int) -> NDArray[np.uint8]:
    """Pack integer codes into bytes, little-endian fields.

    ``codes`` of any shape, read in C order, each in ``[0, 2**bits)``; the last byte is filled up
    with zeros. Returns ``(ceil(codes.size * bits / 8),)``. Raises ValueError for other ``bits``
    than 1, 2, 4 and for a code that doesn't fit.
    """
    fields = _fields(bits)
    flat = np.asarray(codes).ravel()
    if flat.size and (flat.min() < 0 or flat.max() >= 1 << bits):
        raise ValueError(f"pack_bits: codes must be in [0, {1 << bits}) for {bits} bits")
    padded = np.zeros(-(-flat.size // fields) * fields, np.uint8)
    padded[: flat.size] = flat
    shifts = (bits * np.arange(fields)).astype(np.uint8)
    packed = np.bitwise_or.reduce(padded.reshape(-1, fields) << shifts, axis=1)
    return np.asarray(packed, np.uint8)


def unpack_bits(data: NDArray[np.uint8], bits: int, count: int) -> NDArray[np.uint8]:
    """Read back the first ``count`` codes that pack_bits wrote: ``(count,)`` uint8.

    Raises ValueError if ``data`` holds fewer than ``count`` fields.
    """
    fields = _fields(bits)
    flat = np.asarray(data, np.uint8).ravel()
    if not 0 <= count <= flat.size * fields:
        raise ValueError(
            f"unpack_bits: count must be in [0, {flat.size * fields}] for {flat.size} bytes, "
            f"got {count}"
        )
    needed = flat[: -(-count // fields)]
    return bit_table(bits)[needed].reshape(-1)[:count]


def bit_table(bits: int) -> NDArray[np.uint8]:
    """The codes inside every possible byte: ``(256, 8 // bits)``, row b for byte value b."""
    fields = _fields(bits)
    table = np.arange(256)[:, None] >> (bits * np.arange(fields)) & ((1 << bits) - 1)
    return table.astype(np.uint8)


def _fields(bits: int) -> int:
    if bits not in (1, 2, 4):
        raise ValueError(f"bits must be 1, 2 or 4, got {bits}")
    return 8 // bits
