"""What a tensor's bits look like: how few values it holds, alone or in groups, and how often."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

LARGEST = 4096
"""Most entries that an alphabet is looked for with."""

_UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
_SAMPLE = 1 << 13
_BLOCK = 1 << 20


@dataclass(frozen=True, eq=False)
class Alphabet:
    """A flat run of symbols: symbol i is ``entries[codes()[i]]``.

    ``entries`` ``(k, width)`` are distinct; a symbol is one value (width 1) or a row of several.
    ``counts`` ``(k,)`` says how often each occurs; ``codes`` gives ``(n,)`` unsigned integers.
    """

    entries: NDArray[Any]
    counts: NDArray[np.int64]
    codes: Callable[[], NDArray[Any]]

    @property
    def size(self) -> int:
        """How many symbols there are."""
        return int(self.counts.sum())

    @property
    def entropy(self) -> float:
        """Bytes that no code of one symbol at a time can go below (Shannon, 1948)."""
        shares = self.counts[self.counts > 0] / max(self.size, 1)
        return float(-(shares * np.log2(shares)).sum()) * self.size / 8


class Inspection:
    """Facts about one tensor of at least one value, each found when it is first asked for.

    Values are told apart by their bits, so -0.0 isn't 0.0.
    """

    def __init__(self, array: NDArray[Any]) -> None:
        self.array = array
        self._flat = bits(array)

    @cached_property
    def alphabet(self) -> Alphabet | None:
        """The alphabet of single values, entries in the order of their bits; None for too many."""
        found = _indexed(self._flat, LARGEST)
        if found is None:
            return None
        distinct, counts, codes = found
        return Alphabet(distinct.view(self.array.dtype)[:, None], counts, lambda: codes)

    @property
    def entropy(self) -> float | None:
        """Bytes that no code of single values can go below; None where the values aren't few.

        Of few values each occurs twice or more, on average: else they are what takes the bytes.
        """
        symbols = self.alphabet
        few = symbols is not None and 2 * len(symbols.entries) <= symbols.size
        return symbols.entropy if symbols is not None and few else None

    @cached_property
    def background(self) -> NDArray[Any]:
        """The most frequent value, shape ``(1,)``; zero where distinct values are too many."""
        if self.alphabet is None:
            return np.zeros(1, self.array.dtype)
        return np.asarray(self.alphabet.entries[self.alphabet.counts.argmax()])

    @cached_property
    def kept(self) -> NDArray[np.bool_]:
        """Where ``(n,)`` the value is another one than the background."""
        return np.asarray(self._flat != bits(self.background)[0])

    @cached_property
    def kept_count(self) -> int:
        """How many values are others than the background."""
        if self.alphabet is None:
            return int(np.count_nonzero(self.kept))
        return self.alphabet.size - int(self.alphabet.counts.max())

    @cached_property
    def positions(self) -> NDArray[np.intp]:
        """The places of these values, in order."""
        return np.flatnonzero(self.kept)

    def distances(self) -> Iterator[NDArray[np.intp]]:
        """How far each of these values is behind the one before, a part of the tensor at a time."""
        before = -1
        for number, part in enumerate(_blocks(self.kept)):
            places = np.flatnonzero(part) + number * _BLOCK
            yield np.diff(places, prepend=before)
            before = int(places[-1]) if places.size else before

    def rows(self, width: int, fewer_than: Callable[[int, int], bool]) -> Alphabet | None:
        """The alphabet of rows of ``width`` consecutive values, or None.

        ``fewer_than`` is asked whether an alphabet of so many of so many symbols is still wanted.
        """
        size, rest = divmod(self._flat.size, width)
        if rest or size < 2:
            return None
        columns = self._flat.reshape(size, width)
        few = columns[:_SAMPLE]
        met = len(np.unique(np.ascontiguousarray(few).view(f"V{few.itemsize * width}")))
        if met > LARGEST or not fewer_than(met, size):
            return None
        codes, counts = np.zeros(size, np.uint16), np.array([size])
        for column in range(width):
            # Beginnings of rows are never more than rows.
            single = self._column_codes(columns, column)
            if single is None:
                return None
            found = _numbered(codes, len(counts), *single)
            if found is None or not fewer_than(len(found[1]), size):
                return None
            codes, counts = found
        first = np.zeros(len(counts), np.int64)
        for start in reversed(range(0, size, _BLOCK)):
            part = codes[start : start + _BLOCK][::-1]
            first[part] = np.arange(start + len(part) - 1, start - 1, -1)
        entries = np.ascontiguousarray(columns[first]).view(self.array.dtype)
        return Alphabet(entries, counts, lambda: codes)

    def _column_codes(self, columns: NDArray[Any], column: int) -> tuple[NDArray[Any], int] | None:
        if self.alphabet is not None:
            codes = self.alphabet.codes().reshape(columns.shape)[:, column]
            return codes, len(self.alphabet.entries)
        found = _indexed(columns[:, column], LARGEST)
        return None if found is None else (found[2], len(found[0]))


def bits(array: NDArray[Any]) -> NDArray[Any]:
    """Return the values of ``array``, flat, as unsigned integers of the same width."""
    return np.ascontiguousarray(array).reshape(-1).view(_UNSIGNED[array.dtype.itemsize])


def inspect(array: NDArray[Any]) -> Inspection:
    """Inspect a tensor of at least one value."""
    return Inspection(array)


def entropy(values: NDArray[Any]) -> float | None:
    """Return the bits a value that a perfect code takes for each value by itself (Shannon, 1948).

    None where the values aren't few: more than 4096, or each less than twice on average.
    """
    found = inspect(values).entropy if values.size else None
    return None if found is None else 8 * found / values.size


def _indexed(
    values: NDArray[Any], limit: int
) -> tuple[NDArray[Any], NDArray[np.int64], NDArray[Any]] | None:
    """Return the sorted distinct values, their counts and the code of each value.

    None where there are more than ``limit``. Goes block by block: numpy widens all indices.
    """
    distinct = np.unique(values[: 2 * _SAMPLE])
    for part in _blocks(values):
        if len(distinct) > limit:
            return None
        if len(distinct) < 1 << 8 * values.itemsize:
            missed = part[distinct[_places(distinct, part)] != part]
            distinct = np.union1d(distinct, missed) if missed.size else distinct
    if len(distinct) > limit:
        return None
    counts = np.zeros(len(distinct), np.int64)
    codes = np.empty(values.shape, np.uint16 if len(distinct) > 256 else np.uint8)
    for part, place in zip(_blocks(values), _blocks(codes), strict=True):
        place[:] = found = _places(distinct, part)
        counts += np.bincount(found, minlength=len(distinct))
    return distinct, counts, codes


def _numbered(
    codes: NDArray[Any], count: int, more: NDArray[Any], kinds: int
) -> tuple[NDArray[np.uint16], NDArray[np.int64]] | None:
    """Return the number of each pair of codes, in the order of pairs, and how often each occurs.

    ``codes`` are below ``count``, ``more`` below ``kinds``. None for more than 4096 pairs.
    """
    seen = np.zeros(count * kinds, np.bool_)
    for part, other in zip(_blocks(codes), _blocks(more), strict=True):
        seen[part.astype(np.int64) * kinds + other] = True
    distinct = np.flatnonzero(seen)
    if len(distinct) > LARGEST:
        return None
    place = np.zeros(seen.size, np.uint16)
    place[distinct] = np.arange(len(distinct))
    numbers = np.empty(codes.shape, np.uint16)
    counts = np.zeros(len(distinct), np.int64)
    for part, other, number in zip(_blocks(codes), _blocks(more), _blocks(numbers), strict=True):
        number[:] = place[part.astype(np.int64) * kinds + other]
        counts += np.bincount(number, minlength=len(distinct))
    return numbers, counts


def _places(distinct: NDArray[Any], values: NDArray[Any]) -> NDArray[np.intp]:
    """Return where in the sorted ``distinct`` each value stands, or any place where it doesn't."""
    if values.itemsize == 1:
        table = np.zeros(256, np.intp)
        table[distinct] = np.arange(len(distinct))
        return np.asarray(table[values])
    return np.minimum(np.searchsorted(distinct, values), len(distinct) - 1)


def _blocks(values: NDArray[Any]) -> Iterator[NDArray[Any]]:
    for first in range(0, len(values), _BLOCK):
        yield values[first : first + _BLOCK]
