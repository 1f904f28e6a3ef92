"""Which operators are worth running in integers, by the times of the target's table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from typing import Final

from onnxslim_tk.graph.activations import Absorbed
from onnxslim_tk.graph.layer import Layer
from onnxslim_tk.graph.model import Graph, Node, Tensor
from onnxslim_tk.graph.regions import Extents, Grid, Regions, find_regions
from onnxslim_tk.plan.cut import Border, Network, Slower
from onnxslim_tk.plan.targets import Target, Work
from onnxslim_tk.plan.work import Shapes, layer_work, node_work

_PRODUCTS: Final = ("Gemm", "MatMul")
# What the runtime computes together with a float convolution.
FUSED: Final = ("Clip", "HardSigmoid", "LeakyRelu", "Relu", "Sigmoid", "Tanh")
# A tensor of more dimensions is an image, or a stack of them.
_MATRICES: Final = 3


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
    fused = behind[:1] if node.op == "Conv" and behind and behind[0].op in FUSED else ()
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
