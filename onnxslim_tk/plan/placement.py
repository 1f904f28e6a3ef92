"""Which operators are worth running in integers, by the times of the target's table."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import prod
from typing import Final

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import breadth_first_order, maximum_flow

from onnxslim_tk.graph.activations import Absorbed
from onnxslim_tk.graph.layer import Layer
from onnxslim_tk.graph.model import Graph, Node, Tensor
from onnxslim_tk.graph.regions import Extents, Grid, Regions, find_regions
from onnxslim_tk.plan.targets import Target, Work
from onnxslim_tk.plan.work import Shapes, layer_work, node_work

_PRODUCTS: Final = ("Gemm", "MatMul")
# What the runtime computes together with a float convolution.
_FUSED: Final = ("Clip", "HardSigmoid", "LeakyRelu", "Relu", "Sigmoid", "Tanh")
_INTEGER, _FLOAT = 0, 1
CAUTION: Final = 1.1
"""Integers must be faster by this: more than what a table may err."""
# A tensor of more dimensions is an image, or a stack of them.
_MATRICES: Final = 3
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


@dataclass(frozen=True, slots=True)
class Placement:
    """Microseconds that layers save in integers, and those that would run slower, by id."""

    saved: Mapping[str, float]
    slower: Mapping[str, Slower]


def place(
    graph: Graph,
    candidates: Sequence[Sequence[Layer]],
    outputs: set[str],
    extents: Extents,
    shapes: Shapes,
    target: Target,
) -> Placement:
    """Divide layers that could run in integers into those that are to, and the slower ones.

    Each of ``candidates`` holds layers that go together. Every operator of the regions is put in
    integers or in float so that all of them and the changes of numbers between them take the least
    time: a minimum cut (Greig, Porteous and Seheult, 1989), for what float layers leave of the
    regions anew.
    """
    slower: dict[str, Slower] = {}
    kept = list(candidates)
    while True:
        nodes = [layer.node for group in kept for layer in group]
        regions = find_regions(graph, nodes, outputs, extents)
        network = _network(regions, kept, outputs, shapes, target)
        integer = network.cheapest()
        left = [group for group in kept if id(group[0].node) not in integer]
        if not left:
            saved = network.saved(integer)
            known = {layer.id: saved[id(layer.node)] for group in kept for layer in group}
            return Placement(known, slower)
        why = network.slower(integer)
        slower |= {layer.id: why[id(layer.node)] for group in left for layer in group}
        kept = [group for group in kept if id(group[0].node) in integer]


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


def _network(
    regions: Regions,
    candidates: Sequence[Sequence[Layer]],
    outputs: set[str],
    shapes: Shapes,
    target: Target,
) -> Network:
    network = Network()
    known = {id(layer.node): layer for group in candidates for layer in group}
    absorbed = {id(node): found for node, found in regions.absorbed}
    gates = {id(gate.node): gate for gate in regions.gates}
    others = {id(node) for node in regions.others}
    for node in regions.nodes:
        layer = known.get(id(node))
        work = node_work(node, shapes) if layer is None else layer_work(layer, shapes)
        if work is None:
            # Nothing tells what it costs, so nothing keeps it from integers.
            network.times[id(node)] = 0.0, 1.0
            continue
        behind = absorbed.get(id(node), Absorbed())
        gate = gates.get(id(node))
        floating = target.float_time(work) + _behind(node, behind.nodes, shapes, target)
        if gate is not None and gate.inner is not None:
            floating += _float_time(gate.inner, shapes, target)
        integer = target.integer_time(work if gate is None else Work("HardSwish", work.outputs))
        if behind.least is not None:
            integer += target.integer_time(Work("Add", work.outputs))
        network.times[id(node)] = integer, floating
    for grid in regions.grids.values():
        border = _border(grid, regions, network, outputs, shapes, target)
        network.borders.append(border)
        if border.maker is not None:
            # What is no layer joins a region only behind integers.
            network.together += [(key, border.maker) for key in border.readers if key in others]
    for group in candidates:
        ids = [id(layer.node) for layer in group]
        for first, second in pairwise(ids):
            network.together += [(first, second), (second, first)]
    return network


def _behind(node: Node, behind: Sequence[Node], shapes: Shapes, target: Target) -> float:
    """Microseconds in float of what a grid stands for."""
    fused = behind[:1] if node.op == "Conv" and behind and behind[0].op in _FUSED else ()
    return sum(_float_time(other, shapes, target) for other in behind[len(fused) :])


def _float_time(node: Node, shapes: Shapes, target: Target) -> float:
    work = node_work(node, shapes)
    return 0.0 if work is None else target.float_time(work)


def _border(
    grid: Grid,
    regions: Regions,
    network: Network,
    outputs: set[str],
    shapes: Shapes,
    target: Target,
) -> Border:
    tensor = grid.tensor
    maker = _maker(tensor, grid, network)
    absorbed = {id(n) for gate in regions.gates if gate.inner is not None for n in (gate.inner,)}
    readers = [node for node in tensor.outputs if id(node) not in absorbed]
    inside = tuple(dict.fromkeys(id(node) for node in readers if id(node) in network.times))
    shape = shapes.get(tensor.name, ())
    elements = prod(shape)
    # Integer kernels read images with the channels last, float ones in blocks of them.
    turned = target.integer_time(Work("Transpose", elements)) if len(shape) > _MATRICES else 0.0
    # A product gives floats as well as codes, whichever is read.
    product = maker is not None and grid.maker is None
    return Border(
        maker,
        inside,
        tensor.name in outputs or any(id(node) not in network.times for node in readers),
        target.integer_time(Work("QuantizeLinear", elements)) + turned,
        0.0 if product else target.integer_time(Work("DequantizeLinear", elements)) + turned,
    )


def _maker(tensor: Tensor, grid: Grid, network: Network) -> int | None:
    node = grid.maker
    if node is None and tensor.inputs and tensor.inputs[0].op in _PRODUCTS:
        node = tensor.inputs[0]
    return id(node) if node is not None and id(node) in network.times else None
