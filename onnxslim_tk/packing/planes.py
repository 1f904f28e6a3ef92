"""Codes of any width: planes of digits in bytes, which add up to a code when they are read.

A byte holds 8 digits of base 2, 5 of base 3, 4 of base 4, 3 of base 6 or 2 of base 16. Some of
these together reach every width in steps of about a fifth of a bit: 12 entries take a plane of
base 4 and one of base 3, 3.6 bits in all.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import combinations_with_replacement
from math import lcm, prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxslim_tk.kernels.digits import digits_in_byte, pack_digits
from onnxslim_tk.packing.chain import Chain
from onnxslim_tk.packing.inspect import Alphabet
from onnxslim_tk.packing.tables import digits_key, joint_key, rows_of

_BASES = (256, 16, 6, 4, 3, 2)
_MOST = 3
_NODES = 75
"""Bytes that the nodes of a plane take, about."""
_WORD = 1 << 16
_SHARE = 2
_BLOCK = 1 << 17


@dataclass(frozen=True)
class Planes:
    """A mixed radix: the bases of the digits of a code, the lowest digit's first.

    A base of 256 stands for whole bytes, one of 65536 for whole words of 16 bits.
    """

    bases: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.width:.3g}"

    @cached_property
    def entries(self) -> int:
        """How many codes there are."""
        return prod(self.bases)

    @cached_property
    def width(self) -> float:
        """Bits of a code."""
        return sum(16 if base == _WORD else 8 / digits_in_byte(base) for base in self.bases)

    @cached_property
    def tables(self) -> frozenset[int]:
        """The bases that need a table."""
        return frozenset(base for base in self.bases if base < 256)

    @cached_property
    def step(self) -> int:
        """How many codes take whole bytes in every plane."""
        return lcm(*(digits_in_byte(base) for base in self.tables))

    def padded(self, size: int) -> int:
        """How many codes the planes hold where ``size`` are asked for."""
        return -(-size // self.step) * self.step

    def data_size(self, size: int) -> int:
        """Bytes of the planes of ``size`` codes."""
        return round(self.padded(size) * self.width) // 8

    def group(self, size: int) -> int:
        """How many of ``size`` codes can be looked up at once, 0 where each is alone.

        Many of them then make up for the table of all groups.
        """
        if not self.tables or (len(self.tables) > 1 and not self.tables <= {2, 4, 16}):
            return 0
        group = min(digits_in_byte(base) for base in self.bases)
        rows = prod(rows_of(base, group) for base in self.bases)
        fits = len(self.bases) == 1 or (rows <= _WORD and _SHARE * rows * group <= size)
        return group if fits and 256 not in self.bases else 0

    def load(self, size: int, itemsize: int) -> int:
        """Bytes, about, that reading ``size`` symbols takes at load beside the result's own."""
        group = self.group(size)
        if len(self.bases) == 1:
            return size * (itemsize if group else itemsize + 4)
        index = 8 * len(self.bases) + 4 * (len(self.bases) - 1)
        return size * itemsize + index * size // max(group, 1)

    def strides(self) -> Iterator[tuple[int, int]]:
        """Yield every base and what its digit is worth."""
        stride = 1
        for base in self.bases:
            yield base, stride
            stride *= base


_ALL = [
    Planes(bases)
    for count in range(1, _MOST + 1)
    for bases in combinations_with_replacement(_BASES, count)
    if bases.count(256) <= 1
]


@cache
def choices(entries: int) -> tuple[Planes, ...]:
    """The planes worth a look for codes of so many entries, 1 to 65536; fewest planes first.

    These are all single planes, for whose tables a model may have other uses, and several planes
    where they take fewer bits than any fewer of them.
    """
    words = [Planes((_WORD,))] if entries > 256 else []
    fitting = [planes for planes in (*words, *_ALL) if planes.entries >= entries]
    fitting.sort(key=lambda planes: (len(planes.bases), planes.width, planes.bases))
    kept: list[Planes] = []
    for planes in fitting:
        if len(planes.bases) == 1 or planes.width < min(k.width for k in kept):
            kept.append(planes)
    return tuple(kept)


@cache
def frontier() -> tuple[Planes, ...]:
    """Planes of up to 256 codes, ever more codes in ever more bits."""
    found = [min(choices(count), key=lambda planes: planes.width) for count in range(2, 257)]
    best = {planes.width: planes for planes in found}
    return tuple(best[width] for width in sorted(best))


def smallest(entries: int, size: int, itemsize: int) -> Planes | None:
    """The planes that take least for ``size`` symbols, or None where the values take less."""
    options = choices(entries)
    best = min(options, key=lambda planes: _total(planes, entries, size, itemsize))
    return best if _total(best, entries, size, itemsize) < size * itemsize else None


def smallest_size(entries: int, size: int, itemsize: int) -> int:
    """The bytes, about, that ``size`` symbols take in the best planes, or as they are."""
    best = smallest(entries, size, itemsize)
    return size * itemsize if best is None else _total(best, entries, size, itemsize)


def _total(planes: Planes, entries: int, size: int, itemsize: int) -> int:
    return planes.data_size(size) + len(planes.bases) * _NODES + entries * itemsize


def stream(chain: Chain, symbols: Alphabet) -> tuple[str, int]:
    """Store symbols of width 1 the smallest way; return them, flat, and how many with padding."""
    entries = symbols.entries[:, 0]
    planes = smallest(len(entries), symbols.size, entries.itemsize)
    if planes is None:
        shape = (symbols.size,)
        return chain.data(shape, entries.dtype, lambda: entries[symbols.codes()]), symbols.size
    value, size = write(chain, symbols, planes)
    return (chain.flat(value) if planes.group(symbols.size) else value), size


def write(chain: Chain, symbols: Alphabet, planes: Planes) -> tuple[str, int]:
    """Store symbols; return them, entries in the last axes, and how many there are with padding."""
    entries = symbols.entries[:, 0] if symbols.entries.shape[1] == 1 else symbols.entries
    padded = planes.padded(symbols.size)
    group = planes.group(symbols.size)
    if not group:
        index = write_codes(chain, symbols, planes)
        return chain.node("Gather", chain.constant(entries), index), padded
    # The table asks for every code there is, also for those that no entry has.
    full = np.zeros((planes.entries, *entries.shape[1:]), entries.dtype)
    full[: len(entries)] = entries
    table = chain.node("Gather", chain.constant(full), chain.table(codes_key(planes, group)))
    return chain.node("Gather", table, write_groups(chain, symbols, planes, group)), padded


def codes_key(planes: Planes, group: int) -> str:
    """The key of the table of the codes in every group, by the rows that `write_groups` gives."""
    return digits_key(*planes.bases) if len(planes.bases) == 1 else joint_key(planes.bases, group)


def write_groups(chain: Chain, symbols: Alphabet, planes: Planes, group: int) -> str:
    """Store the codes of symbols; return for every ``group`` of them the row of a joint table."""
    total, rows = "", 1
    for base, stride in planes.strides():
        plane = _plane(chain, symbols, base, stride, planes.padded(symbols.size))
        if digits_in_byte(base) > group:
            digits = chain.node("Gather", chain.table(digits_key(base**group, rows)), plane)
            plane = chain.flat(digits)
        elif rows > 1:
            plane = chain.node("Mul", plane, chain.constant(np.array(rows, np.int32)))
        rows *= rows_of(base, group)
        total = chain.node("Add", total, plane) if total else plane
    return total


def write_codes(chain: Chain, symbols: Alphabet, planes: Planes) -> str:
    """Store the codes of symbols; return them as int32, ``(planes.padded(size),)``."""
    total = ""
    for base, stride in planes.strides():
        plane = _plane(chain, symbols, base, stride, planes.padded(symbols.size))
        if base < 256:
            digits = chain.node("Gather", chain.table(digits_key(base, stride)), plane)
            plane = chain.flat(digits)
        total = chain.node("Add", total, plane) if total else plane
    return total


def _plane(chain: Chain, symbols: Alphabet, base: int, stride: int, padded: int) -> str:
    """Store one digit of every code; return the bytes, or words, as int32."""

    def make() -> NDArray[Any]:
        picked = symbols.codes()
        stored = np.zeros(padded // count, dtype)
        # Whole bytes at a time, for digits are taken out of wider numbers.
        step = _BLOCK * count
        for first in range(0, picked.size, step):
            part = picked[first : first + step]
            if base < _WORD:
                wide = part.astype(np.uint16, copy=False)
                part = pack_digits(wide // np.uint16(stride) % np.uint16(base), base)
            stored[first // count :][: part.size] = part
        return stored

    dtype = np.dtype(np.uint16 if base == _WORD else np.uint8)
    count = 1 if base == _WORD else digits_in_byte(base)
    return chain.as_integers(chain.data((padded // count,), dtype, make))
