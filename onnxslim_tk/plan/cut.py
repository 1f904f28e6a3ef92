"""The minimum cut that divides operators between integers and float, borders counted."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import breadth_first_order, maximum_flow

_INTEGER, _FLOAT = 0, 1
CAUTION: Final = 1.1
"""Integers must be faster by this: more than what a table may err."""
# Capacities are whole numbers of 32 bits.
_FINEST: Final = 1000.0
_MOST: Final = 2.0**28


@dataclass(frozen=True, slots=True)
class Slower:
    """Microseconds of a run of operators in integers, with its borders, and in float."""

    integer: float
    float: float

    def __str__(self) -> str:
        how = "slower" if self.integer >= self.float else "hardly faster"
        return f"would run {how} in integers: {self.integer:.1f} us against {self.float:.1f} us"


@dataclass(slots=True)
class Border:
    """A tensor between operators: what it costs where its maker and a reader differ.

    ``maker`` is None for one that is always float; ``in_float`` says that something reads it in
    float in any case.
    """

    maker: int | None
    readers: tuple[int, ...]
    in_float: bool
    quantize: float
    dequantize: float

    @property
    def ends(self) -> set[int]:
        """The operators at the border that can be on either side."""
        return {*self.readers} if self.maker is None else {self.maker, *self.readers}


@dataclass(slots=True)
class Network:
    """Operators by the ids of their nodes, with times in integers and in float, and borders.

    ``together`` are pairs of which the first is in integers only where the second is.
    """

    times: dict[int, tuple[float, float]] = field(default_factory=dict)
    borders: list[Border] = field(default_factory=list)
    together: list[tuple[int, int]] = field(default_factory=list)

    def cost(self, integer: set[int], caution: float = 1.0) -> float:
        """Microseconds with the operators ``integer`` in integers and the others in float.

        What integers cost, with the changes of numbers, counts ``caution`` times.
        """
        floats = sum(times[_FLOAT] for key, times in self.times.items() if key not in integer)
        codes = sum(times[_INTEGER] for key, times in self.times.items() if key in integer)
        crossings = sum(_crossing(border, integer) for border in self.borders)
        return floats + caution * (codes + crossings)

    def cheapest(self) -> set[int]:
        """The operators to run in integers; float where both take about the same time."""
        keys = list(self.times)
        place = {key: k for k, key in enumerate(keys)}
        source, sink, count = len(keys), len(keys) + 1, len(keys) + 2
        edges: dict[tuple[int, int], float] = {}

        def add(start: int, end: int, cost: float) -> None:
            edges[start, end] = edges.get((start, end), 0.0) + cost

        never = self.cost(set()) + 2 * self.cost(set(keys)) + 1.0
        for key, (integer, floating) in self.times.items():
            add(place[key], sink, integer * CAUTION)
            add(source, place[key], floating)
        for first, second in self.together:
            add(place[first], place[second], never)
        for border in self.borders:
            maker = sink if border.maker is None else place[border.maker]
            # The codes of a tensor, and its floats, are made once for all that read them.
            codes, floats, count = count, count + 1, count + 2
            for reader in border.readers:
                add(place[reader], codes, never)
                if border.maker is not None:
                    add(floats, place[reader], never)
            add(codes, maker, border.quantize * CAUTION)
            if border.maker is not None:
                end = sink if border.in_float else floats
                add(maker, end, border.dequantize * CAUTION)
        reached = _source_side(edges, source, sink, count, never)
        return {key for key in keys if place[key] in reached}

    def saved(self, integer: set[int]) -> dict[int, float]:
        """What each of ``integer`` saves beside the others, a change of numbers included."""
        touching: dict[int, list[Border]] = {}
        for border in self.borders:
            for key in border.ends:
                touching.setdefault(key, []).append(border)
        found = {}
        for key in integer:
            time = self.times[key]
            borders = touching.get(key, [])
            without = integer - {key}
            more = sum(_crossing(b, without) - _crossing(b, integer) for b in borders)
            found[key] = max(time[_FLOAT] - time[_INTEGER] + more, 0.0)
        return found

    def slower(self, integer: set[int]) -> dict[int, Slower]:
        """For each operator beside ``integer`` the times of the run of such that it belongs to."""
        found: dict[int, Slower] = {}
        least = self.cost(integer)
        for part in self._parts(set(self.times) - integer):
            floating = sum(self.times[key][_FLOAT] for key in part)
            why = Slower(floating + self.cost(integer | part) - least, floating)
            found |= dict.fromkeys(part, why)
        return found

    def _parts(self, keys: set[int]) -> Iterator[set[int]]:
        """``keys`` in parts that no border joins."""
        near: dict[int, set[int]] = {key: set() for key in keys}
        for border in self.borders:
            ends = border.ends & keys
            for end in ends:
                near[end] |= ends
        for first, second in self.together:
            if {first, second} <= keys:
                near[first].add(second)
                near[second].add(first)
        while near:
            start = next(iter(near))
            part, waiting = {start}, [start]
            while waiting:
                fresh = near.pop(waiting.pop()) - part
                part |= fresh
                waiting.extend(fresh)
            yield part


def _crossing(border: Border, integer: set[int]) -> float:
    """Microseconds of the change of numbers at a tensor."""
    made = border.maker in integer
    if not made:
        return border.quantize if any(r in integer for r in border.readers) else 0.0
    in_float = border.in_float or any(r not in integer for r in border.readers)
    return border.dequantize if in_float else 0.0


def _source_side(
    edges: Mapping[tuple[int, int], float], source: int, sink: int, count: int, never: float
) -> set[int]:
    """What a minimum cut leaves with the source, as little of it as there can be."""
    scale = min(_FINEST, _MOST / never)
    starts, ends = np.array(list(edges), np.int64).reshape(-1, 2).T
    capacities = np.rint(np.array(list(edges.values())) * scale).astype(np.int32)
    network = csr_array((capacities, (starts, ends)), shape=(count, count))
    flow = maximum_flow(network, source, sink).flow
    left = csr_array(network - flow)
    left.data = np.maximum(left.data, 0)
    left.eliminate_zeros()
    reached = breadth_first_order(left, source, return_predecessors=False)
    return set(reached.tolist())
