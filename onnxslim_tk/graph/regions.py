"""Regions: runs of nodes that work in integers, and the grids that their tensors lie on."""

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from onnxslim_tk.graph.edit import input_at, is_constant, producer, sole_reader, values_of
from onnxslim_tk.graph.model import Graph, Node, Tensor
from onnxslim_tk.graph.order import ordered

_STANDARD: Final = (None, "", "ai.onnx")
# Data movement: the output lies on the grid of the input.
MOVES: Final = frozenset(
    {
        "DepthToSpace",
        "Flatten",
        "MaxPool",
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
_HARD_SWISH_ZERO: Final = -3.0
# Layers that need a quantized output to run in integers at all.
ALWAYS_INTEGER_OUT: Final = frozenset({"Conv"})


@dataclass(frozen=True, slots=True, eq=False)
class Grid:
    """A tensor to be quantized.

    ``like`` names the tensor whose grid it shares; ``floor`` is a low end fixed by an absorbed
    activation, ``ceiling`` its high end; ``made_in_integers`` says that its producer's result
    exists only on the grid, so every reader gets it from there.
    """

    tensor: Tensor
    like: str
    floor: float | None
    ceiling: float | None
    made_in_integers: bool
    feeds_conv: bool


@dataclass(frozen=True, slots=True, eq=False)
class Regions:
    """Nodes that run in integers beside the layers, activations they absorb, tensors on grids."""

    layers: tuple[Node, ...]
    others: tuple[Node, ...]
    absorbed: tuple[tuple[Node, Node], ...]
    grids: Mapping[str, Grid]

    @property
    def nodes(self) -> tuple[Node, ...]:
        """All integer nodes."""
        return (*self.layers, *self.others)


def find_regions(
    graph: Graph, layer_nodes: Sequence[Node], outputs: set[str], ranged: Container[str]
) -> Regions:
    """The regions that grow from ``layer_nodes``, which are to run in integers.

    ``outputs`` names the tensors that must keep their name, ``ranged`` those whose range is
    known. An operator joins where all its activations come from integers and some integer
    operator reads its result.
    """
    nodes = [node for node in ordered(graph) if node.domain in _STANDARD]
    chosen = {id(node) for node in layer_nodes}
    absorbed = _absorbed(nodes, chosen, outputs)
    joined = _forward(nodes, chosen, absorbed, ranged)
    joined = _backward(nodes, chosen, joined, absorbed)
    others = tuple(node for node in nodes if id(node) in joined)
    kept = {k: v for k, v in absorbed.items() if k in chosen or k in joined}
    layers = tuple(node for node in nodes if id(node) in chosen)
    pairs = tuple((node, kept[id(node)]) for node in nodes if id(node) in kept)
    return Regions(layers, others, pairs, _grids(layers, others, kept, outputs))


def _absorbed(nodes: Sequence[Node], chosen: set[int], outputs: set[str]) -> dict[int, Node]:
    """Relu and Clip from 0 behind an operator: saturation at the grid's ends does their work."""
    found = {}
    for node in nodes:
        if (id(node) in chosen and node.op in ALWAYS_INTEGER_OUT) or node.op == "Add":
            reader = sole_reader(node.outputs[0], outputs)
            plain = reader is not None and reader.domain in _STANDARD
            if reader is not None and plain and _clip_range(reader) is not None:
                found[id(node)] = reader
    return found


def _clip_range(node: Node) -> tuple[float, float | None] | None:
    """Ends of an activation that saturation can stand for, from 0 up; None for all others."""
    if node.op == "Relu":
        return 0.0, None
    if node.op != "Clip":
        return None
    if "min" in node.attrs or "max" in node.attrs:
        low, high = node.attrs.get("min"), node.attrs.get("max")
    else:
        ends = [input_at(node, 1), input_at(node, 2)]
        if any(end is not None and not is_constant(end) for end in ends):
            return None
        low, high = (None if end is None else float(values_of(end).item()) for end in ends)
    return (0.0, high) if low == 0.0 and (high is None or high > 0) else None


def _result(node: Node, absorbed: Mapping[int, Node]) -> Tensor:
    """The tensor that a node gives its readers, past an absorbed activation."""
    return absorbed[id(node)].outputs[0] if id(node) in absorbed else node.outputs[0]


def _activations(node: Node) -> list[Tensor]:
    """Inputs that an integer operator reads as data; weight and bias of a layer are none."""
    if node.op in MOVES | BRIDGES or node.op in ("Conv", "Gemm", "MatMul"):
        return [node.inputs[0]]
    return [t for t in node.inputs if not t.is_empty()]


def _forward(
    nodes: Sequence[Node], chosen: set[int], absorbed: Mapping[int, Node], ranged: Container[str]
) -> set[int]:
    """Operators whose activations all come from integers, directly or over a bridge."""
    integer: set[int] = set()
    near: set[int] = set()
    joined: set[int] = set()
    for node in nodes:
        if id(node) in chosen:
            if node.op in ALWAYS_INTEGER_OUT:
                integer.add(id(_result(node, absorbed)))
            continue
        activations = _activations(node)
        if not all(t.name in ranged for t in (*activations, *node.outputs[:1])):
            continue
        if node.op in MOVES and _moves(node) and id(activations[0]) in integer | near:
            (integer if id(activations[0]) in integer else near).add(id(node.outputs[0]))
            joined.add(id(node))
        elif node.op in ARITHMETIC and activations:
            if all(id(t) in integer or id(t) in near for t in activations):
                joined.add(id(node))
                integer.add(id(_result(node, absorbed)))
        elif node.op in BRIDGES and id(node.inputs[0]) in integer | near:
            near.add(id(node.outputs[0]))
    return joined


def _moves(node: Node) -> bool:
    """Whether a data movement keeps values as they are; interpolation does not."""
    if node.op == "Resize":
        return bool(node.attrs.get("mode", "nearest") == "nearest")
    return len(node.outputs) == 1


def _backward(
    nodes: Sequence[Node], chosen: set[int], joined: set[int], absorbed: Mapping[int, Node]
) -> set[int]:
    """Those of ``joined`` that an integer operator reads in the end."""
    kept: set[int] = set()
    for node in reversed(nodes):
        if id(node) in joined:
            readers = _result(node, absorbed).outputs
            if any(id(reader) in kept or id(reader) in chosen for reader in readers):
                kept.add(id(node))
    return kept


def _grids(
    layers: Sequence[Node],
    others: Sequence[Node],
    absorbed: Mapping[int, Node],
    outputs: set[str],
) -> dict[str, Grid]:
    nodes = (*layers, *others)
    conv_inputs = {id(node.inputs[0]) for node in layers if node.op == "Conv"}
    made: dict[int, Node] = {}
    for node in nodes:
        if node.op not in ("Gemm", "MatMul"):
            made[id(_result(node, absorbed))] = node
    tensors: dict[str, Tensor] = {}
    for node in nodes:
        for tensor in _activations(node):
            tensors[tensor.name] = tensor
    for node in nodes:
        if id(_result(node, absorbed)) in made:
            tensors[_result(node, absorbed).name] = _result(node, absorbed)
    moved = {node.outputs[0].name: node for node in others if node.op in MOVES}

    def root(name: str) -> str:
        while name in moved:
            name = moved[name].inputs[0].name
        return name

    grids = {}
    for name, tensor in tensors.items():
        maker = made.get(id(tensor))
        shown = tensor.name in outputs
        floor, ceiling = _ends(tensor, None if maker is None else absorbed.get(id(maker)), shown)
        grids[name] = Grid(
            tensor, root(name), floor, ceiling, maker is not None, id(tensor) in conv_inputs
        )
    return grids


def _ends(tensor: Tensor, absorbed: Node | None, shown: bool) -> tuple[float | None, float | None]:
    """Ends of the grid known without looking at values; ``shown``: a graph gives it out."""
    if absorbed is not None:
        return _clip_range(absorbed) or (None, None)
    maker = producer(tensor)
    if maker is not None and maker.op in ("Relu", "Sigmoid"):
        return 0.0, None
    # HardSwish is 0 from -3 down, so nothing below has to be told apart.
    deaf = (
        not shown
        and bool(tensor.outputs)
        and all(reader.op == "HardSwish" for reader in tensor.outputs)
    )
    return (_HARD_SWISH_ZERO, None) if deaf else (None, None)
