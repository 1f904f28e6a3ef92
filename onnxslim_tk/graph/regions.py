"""Regions: runs of nodes that work in integers, and the grids that their tensors lie on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from onnxslim_tk.graph.activations import Absorbed, Gate, absorbed_behind, gate_of, scalar_affine
from onnxslim_tk.graph.domains import STANDARD_DOMAINS
from onnxslim_tk.graph.edit import input_at, is_constant, producer, values_of
from onnxslim_tk.graph.model import Graph, Node, Tensor
from onnxslim_tk.graph.order import ordered

Array = NDArray[Any]
# Few values picked out of many: to make floats of the many first would cost more than it gives.
EXTREMES: Final = frozenset({"ReduceMax", "ReduceMin"})
# Data movement: the output lies on the grid of the input.
MOVES: Final = EXTREMES | frozenset(
    {
        "DepthToSpace",
        "Flatten",
        "MaxPool",
        "Pad",
        "Reshape",
        "Resize",
        "SpaceToDepth",
        "Squeeze",
        "Transpose",
        "Unsqueeze",
    }
)
# Arithmetic that onnxruntime has in uint8, each output on a grid of its own.
ARITHMETIC: Final = frozenset(
    {"Add", "AveragePool", "Concat", "GlobalAveragePool", "Mul", "Sigmoid"}
)
# Cheap float functions between two integer operators; quantizing their output again is worth it.
BRIDGES: Final = frozenset(
    {
        "BatchNormalization",
        "Clip",
        "Elu",
        "HardSigmoid",
        "HardSwish",
        "LeakyRelu",
        "Max",
        "Min",
        "PRelu",
        "Relu",
        "Tanh",
    }
)
# On a grid that is this much coarser than its own an input of a Concat would lose its meaning.
_CONCAT_RATIO: Final = 8.0
# Layers that need a quantized output to run in integers at all.
ALWAYS_INTEGER_OUT: Final = frozenset({"Conv"})


Extents = Mapping[str, tuple[float, float]]
"""The lowest and the highest value that were seen in each tensor, by name."""


@dataclass(frozen=True, slots=True, eq=False)
class Grid:
    """A tensor to be quantized.

    ``like`` names the tensor whose grid it shares; ``floor`` is a low end fixed by an absorbed
    activation, ``ceiling`` its high end; ``maker`` is the integer operator whose result exists
    only on the grid, so that every reader gets it from there; ``absorbed`` is what vanishes
    between the two.
    """

    tensor: Tensor
    like: str
    floor: float | None
    ceiling: float | None
    maker: Node | None
    feeds_conv: bool
    absorbed: Absorbed

    @property
    def made_in_integers(self) -> bool:
        """Whether every reader gets the tensor from its grid."""
        return self.maker is not None

    @property
    def has_bias(self) -> bool:
        """Whether the maker adds a bias, which can move its results by parts of a step."""
        return self.maker is not None and self.maker.op in ALWAYS_INTEGER_OUT


@dataclass(frozen=True, slots=True, eq=False)
class Regions:
    """Nodes that run in integers beside the layers, what they absorb, and tensors on grids."""

    layers: tuple[Node, ...]
    others: tuple[Node, ...]
    gates: tuple[Gate, ...]
    absorbed: tuple[tuple[Node, Absorbed], ...]
    grids: Mapping[str, Grid]

    @property
    def nodes(self) -> tuple[Node, ...]:
        """All integer nodes."""
        return (*self.layers, *self.others)


def find_regions(
    graph: Graph, layer_nodes: Sequence[Node], outputs: set[str], extents: Extents
) -> Regions:
    """The regions that grow from ``layer_nodes``, which are to run in integers.

    ``outputs`` names the tensors that must keep their name; a tensor without an extent can't lie
    on a grid. An operator joins where all its activations come from integers and some integer
    operator reads its result.
    """
    return _Search(graph, layer_nodes, outputs, extents).regions()


class _Search:
    """The state of one search; sets hold the ids of nodes and tensors."""

    def __init__(
        self, graph: Graph, layer_nodes: Sequence[Node], outputs: set[str], extents: Extents
    ) -> None:
        self.nodes = [node for node in ordered(graph) if node.domain in STANDARD_DOMAINS]
        self.chosen = {id(node) for node in layer_nodes}
        self.outputs = outputs
        self.extents = extents
        found = (gate_of(node, outputs) for node in self.nodes)
        self.gates = {id(gate.node): gate for gate in found if gate is not None}
        self.shut = {
            id(n): g.floor for g in self.gates.values() for n in (g.node, g.inner) if n is not None
        }
        self.absorbed = self._absorbed()

    def regions(self) -> Regions:
        joined = self._backward(self._forward())
        kept = self.chosen | joined
        layers = tuple(node for node in self.nodes if id(node) in self.chosen)
        others = tuple(node for node in self.nodes if id(node) in joined)
        gates = tuple(self.gates[id(node)] for node in others if id(node) in self.gates)
        self.absorbed = {key: found for key, found in self.absorbed.items() if key in kept}
        pairs = tuple(
            (node, self.absorbed[id(node)]) for node in self.nodes if id(node) in self.absorbed
        )
        return Regions(layers, others, gates, pairs, self._grids(layers, others, gates))

    def _absorbed(self) -> dict[int, Absorbed]:
        """What grids stand for, behind the operators that have one of their own."""
        found = {}
        for node in self.nodes:
            layer = id(node) in self.chosen and node.op in ALWAYS_INTEGER_OUT
            if layer or node.op in ARITHMETIC or id(node) in self.gates:
                behind = absorbed_behind(node, self.outputs)
                if behind is None or behind.result.name not in self.extents:
                    continue
                # Floors of channels go into a bias.
                if behind.least is None or (layer and _per_channel(behind.least, node)):
                    found[id(node)] = behind
        return found

    def _result(self, node: Node) -> Tensor:
        """The tensor that a node gives its readers, past what it absorbs."""
        return self.absorbed[id(node)].result if id(node) in self.absorbed else node.outputs[0]

    def _activations(self, node: Node) -> list[Tensor]:
        """Inputs that an integer operator reads as data; weight and bias of a layer are none."""
        if id(node) in self.gates:
            return [self.gates[id(node)].source]
        if node.op in MOVES | BRIDGES or node.op in ("Conv", "Gemm", "MatMul"):
            return [node.inputs[0]]
        return [t for t in node.inputs if not t.is_empty()]

    def _forward(self) -> set[int]:
        """Operators whose activations all come from integers, directly or over a bridge."""
        integer: set[int] = set()
        near: set[int] = set()
        joined: set[int] = set()
        for node in self.nodes:
            if id(node) in self.chosen:
                if node.op in ALWAYS_INTEGER_OUT:
                    integer.add(id(self._result(node)))
                continue
            activations = self._activations(node)
            if not all(t.name in self.extents for t in (*activations, *node.outputs[:1])):
                continue
            if id(node) in self.gates:
                if id(activations[0]) in integer:
                    joined.add(id(node))
                    integer.add(id(self._result(node)))
                elif id(activations[0]) in near:
                    near.add(id(node.outputs[0]))
            elif _moves(node) and id(activations[0]) in (
                integer if node.op in EXTREMES else integer | near
            ):
                (integer if id(activations[0]) in integer else near).add(id(node.outputs[0]))
                joined.add(id(node))
            elif node.op in ARITHMETIC and activations and self._shares_a_grid(node):
                if all(id(t) in integer or id(t) in near for t in activations):
                    joined.add(id(node))
                    integer.add(id(self._result(node)))
            elif _crossed(node, integer | near):
                near.add(id(node.outputs[0]))
        return joined

    def _shares_a_grid(self, node: Node) -> bool:
        """Whether no input of a Concat would vanish on its grid, as scores do beside boxes."""
        if node.op != "Concat":
            return True
        spans = [max(map(abs, self.extents[t.name])) for t in node.inputs]
        return max(spans) <= _CONCAT_RATIO * min(spans)

    def _backward(self, joined: set[int]) -> set[int]:
        """Those of ``joined`` that an integer operator reads in the end, or that pick out few."""
        kept: set[int] = set()
        for node in reversed(self.nodes):
            if id(node) in joined:
                readers = self._result(node).outputs
                wanted = any(id(r) in kept or id(r) in self.chosen for r in readers)
                if wanted or node.op in EXTREMES:
                    kept.add(id(node))
        return kept

    def _grids(
        self, layers: Sequence[Node], others: Sequence[Node], gates: Sequence[Gate]
    ) -> dict[str, Grid]:
        nodes = (*layers, *others)
        conv_inputs = {id(node.inputs[0]) for node in layers if node.op == "Conv"}
        made = {id(self._result(n)): n for n in nodes if n.op not in ("Gemm", "MatMul")}
        results = {id(t): t for t in map(self._result, nodes) if id(t) in made}
        read = {id(t): t for node in nodes for t in self._activations(node)}
        moved = {node.outputs[0].name: node for node in others if node.op in MOVES}
        floors = {gate.source.name: gate.floor for gate in gates}
        grids = {}
        for key, tensor in (read | results).items():
            maker = made.get(key)
            absorbed = Absorbed() if maker is None else self.absorbed.get(id(maker), Absorbed())
            floor, ceiling = self._ends(tensor, absorbed, floors.get(tensor.name))
            root = tensor.name
            while root in moved:
                root = moved[root].inputs[0].name
            grids[tensor.name] = Grid(
                tensor, root, floor, ceiling, maker, key in conv_inputs, absorbed
            )
        return grids

    def _ends(
        self, tensor: Tensor, absorbed: Absorbed, shut: float | None
    ) -> tuple[float | None, float | None]:
        """Ends of the grid known without looking at values; below ``shut`` a gate is shut."""
        if absorbed.nodes:
            lows = [end for end in (absorbed.low, shut) if end is not None]
            return max(lows, default=None), absorbed.high
        maker = producer(tensor)
        if maker is not None and maker.op in ("Relu", "Sigmoid"):
            return 0.0, None
        return shut if shut is not None else self._deaf(tensor), None

    def _deaf(self, tensor: Tensor) -> float | None:
        """The value below which all readers of a tensor give zero, if there is one."""
        if tensor.name in self.outputs or not tensor.outputs:
            return None
        floors = [self.shut.get(id(reader), -inf) for reader in tensor.outputs]
        return None if -inf in floors else min(floors)


def _per_channel(values: Array, node: Node) -> bool:
    """Whether constants are one number, or one for each channel that a convolution gives."""
    weight = node.inputs[1]
    while weight.shape is None and weight.inputs:
        # What is decoded need not tell its shape; its codes do.
        weight = weight.inputs[0].inputs[0]
    behind = len(weight.shape) - 1
    return values.size == 1 or (
        values.ndim >= behind and values.shape[values.ndim - behind] == values.size
    )


def _crossed(node: Node, sources: set[int]) -> bool:
    """Whether a node is a cheap float function of one of the tensors ``sources``."""
    if node.op in BRIDGES:
        return id(node.inputs[0]) in sources
    return any(id(t) in sources and scalar_affine(node, t) is not None for t in node.inputs)


def _moves(node: Node) -> bool:
    """Whether a data movement keeps values as they are; interpolation does not.

    A Pad puts in zeros, or values that are there.
    """
    if node.op not in MOVES:
        return False
    if node.op == "Pad":
        filler = input_at(node, 2)
        zeros = filler is None or (is_constant(filler) and not np.any(values_of(filler)))
        return zeros or node.attrs.get("mode", "constant") != "constant"
    if node.op == "Resize":
        return bool(node.attrs.get("mode", "nearest") == "nearest")
    return len(node.outputs) == 1
