"""Digits of a small base packed into bytes, the first digit the lowest one: 1.6 bits for base 3."""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def digits_in_byte(base: int) -> int:
    """How many digits of ``base`` fit into a byte; raises ValueError outside [2, 256]."""
    if not 2 <= base <= 256:
        raise ValueError(f"base must be in [2, 256], got {base}")
    count = 1
    while base ** (count + 1) <= 256:
        count += 1
    return count


def pack_digits(codes: NDArray[Any], base: int) -> NDArray[np.uint8]:
    """Pack integer codes into bytes; for a power of two these are bit fields, little-endian.

    ``codes`` of any shape, read in C order, each in ``[0, base)``; the last byte is filled up with
    zeros. Returns ``(ceil(codes.size / digits_in_byte(base)),)``. Raises ValueError for a base
    outside [2, 256] and for a code that is no digit of it.
    """
    count = digits_in_byte(base)
    flat = np.asarray(codes).ravel()
    if flat.size and (flat.min() < 0 or flat.max() >= base):
        raise ValueError(f"pack_digits: codes must be in [0, {base}) for base {base}")
    padded = np.zeros(-(-flat.size // count) * count, np.uint8)
    padded[: flat.size] = flat
    columns = padded.reshape(-1, count)
    packed = columns[:, count - 1].copy()
    for column in reversed(range(count - 1)):
        packed *= np.uint8(base)
        packed += columns[:, column]
    return packed


def digit_table(base: int) -> NDArray[np.uint8]:
    """The digits in every possible byte: ``(256, digits_in_byte(base))``, row b for byte b.

    Bytes that no digits make have rows of digits too, without meaning.
    """
    weights = base ** np.arange(digits_in_byte(base))
    return (np.arange(256)[:, None] // weights % base).astype(np.uint8)
