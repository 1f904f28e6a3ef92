"""The sparse encodings: most values are the same, and the others stand apart."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, partial
from math import lcm
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxslim_tk.kernels.digits import pack_digits
from onnxslim_tk.packing.chain import Chain
from onnxslim_tk.packing.encode import Encoding
from onnxslim_tk.packing.inspect import Alphabet, Inspection
from onnxslim_tk.packing.planes import choices, smallest, stream, write, write_codes
from onnxslim_tk.packing.tables import COUNTS, RANKS

_MOST_KEPT = 0.9
"""A tensor that keeps a larger part of its values than this is stored densely."""

_REACHES = (4, 8, 16, 32, 64, 256)
"""How far the next value may lie: codes of 2 to 8 bits."""


def sparse(facts: Inspection) -> Iterator[Encoding]:
    """The sparse encodings of a tensor, as far as a quick look can tell."""
    size = facts.array.size
    share = facts.kept_count / size
    if 0 < share < _MOST_KEPT:
        yield Encoding("bitmask", partial(_bitmask, facts), 12 * size + facts.array.nbytes, 12)
    if 0 < share < _MOST_KEPT / 2:
        yield Encoding(
            "gaps", partial(_gaps, facts), 20 * facts.kept_count + 2 * facts.array.nbytes, 11
        )


def _bitmask(facts: Inspection, chain: Chain) -> str:
    """One bit says whether a value differs from the background; those that do follow in order."""
    size = facts.array.size
    values, _ = _kept(facts, chain)
    with_background = chain.node("Concat", chain.constant(facts.background), values, axis=0)
    length = -(-size // 8)
    mask = chain.data((length,), np.dtype(np.uint8), lambda: pack_digits(facts.kept, 2))
    read = chain.as_integers(mask)
    counts = chain.node("Gather", chain.table(COUNTS), read)
    before = chain.node("CumSum", counts, chain.constant(np.array(0, np.int64)), exclusive=1)
    ranks = chain.node("Gather", chain.table(RANKS), read)
    index = chain.node("Add", ranks, before)
    index = chain.node("Max", index, chain.constant(np.array(0, np.int32)))
    dense = chain.node("Gather", with_background, index)
    return chain.shaped(dense, 8 * length, facts.array.shape)


def _kept(facts: Inspection, chain: Chain) -> tuple[str, int]:
    """Store the values that differ from the background; padding may follow them."""
    symbols, flat = facts.alphabet, facts.array.reshape(-1)
    if symbols is None:
        name = chain.data((facts.kept_count,), flat.dtype, lambda: flat[facts.kept])
        return name, facts.kept_count
    common = int(symbols.counts.argmax())

    def make() -> NDArray[Any]:
        picked = symbols.codes()[facts.kept]
        return np.asarray(picked - (picked > common))

    entries = np.delete(symbols.entries, common, axis=0)
    return stream(chain, Alphabet(entries, np.delete(symbols.counts, common), make))


def _gaps(facts: Inspection, chain: Chain) -> str:
    """The distance from each value that differs from the background to the next, and the values.

    A distance beyond what a code can say is bridged with entries of background.
    """
    symbols, background, flat = facts.alphabet, facts.background, facts.array.reshape(-1)
    reach, bridged = _reach(facts)
    steps = choices(reach)[0]
    planes = None if symbols is None else smallest(len(symbols.entries), bridged, flat.itemsize)
    # Whole bytes in all planes: pad with entries of background behind the tensor's end.
    step = lcm(*(p.step for p in (steps, planes) if p is not None))
    length = -(-bridged // step) * step

    @cache
    def steps_taken() -> tuple[NDArray[Any], NDArray[Any]]:
        distance = np.diff(facts.positions, prepend=-1)
        bridges = (distance - 1) // reach
        return np.cumsum(bridges + 1) - 1, distance - bridges * reach - 1

    def walked() -> NDArray[Any]:
        at, last = steps_taken()
        found = np.full(length, reach - 1, np.uint16)
        found[at] = last
        found[bridged:] = 0
        return found

    def among(filling: Any, picked: NDArray[Any]) -> NDArray[Any]:
        found = np.full(length, filling, picked.dtype)
        found[steps_taken()[0]] = picked[facts.positions]
        return found

    if symbols is None or planes is None:
        values = chain.data((length,), flat.dtype, lambda: among(background[0], flat))
    else:
        common = int(symbols.counts.argmax())
        counts = symbols.counts.copy()
        counts[common] += length - symbols.size
        rest = Alphabet(symbols.entries, counts, lambda: among(common, symbols.codes()))
        values = chain.flat(write(chain, rest, planes)[0])
    codes = write_codes(
        chain, Alphabet(np.arange(reach)[:, None], np.array([length]), walked), steps
    )
    walk = chain.node("Add", codes, chain.constant(np.array(1, np.int32)))
    index = chain.node("CumSum", walk, chain.constant(np.array(0, np.int64)))
    # The first step lands on 1 or later: the element 0 is only there to be cut off.
    blank = chain.filled((flat.size + 1 + length - bridged,), background)
    filled = chain.node("ScatterElements", blank, index, values, axis=0)
    dense = chain.cut(filled, (1,), (flat.size,))
    return dense if facts.array.ndim == 1 else chain.shaped(dense, flat.size, facts.array.shape)


def _reach(facts: Inspection) -> tuple[int, int]:
    """Return how far a code should reach at most, and how many entries that takes."""
    entries = dict.fromkeys(_REACHES, facts.kept_count)
    for distance in facts.distances():
        for reach in _REACHES:
            entries[reach] += int(((distance - 1) // reach).sum())
    value = 8.0 * facts.array.itemsize
    if facts.alphabet is not None:
        value = min(value, float(choices(len(facts.alphabet.entries))[-1].width))
    best = min(_REACHES, key=lambda r: entries[r] * (value + float(choices(r)[0].width)))
    return best, entries[best]
