"""A graph as steps to run one after the other, with all names looked up beforehand."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import AttributeProto, TensorProto, helper, inliner

from onnxslim_tk.errors import TrainingError
from onnxslim_tk.graph.model import Model, to_parts
from onnxslim_tk.graph.notes import first_name
from onnxslim_tk.graph.order import captured_names
from onnxslim_tk.graph.weights import Weights
from onnxslim_tk.train.operators import OPERATORS
from onnxslim_tk.train.rules import Node, Rule, Value

STANDARD: Final = ("", "ai.onnx")
CONTROL: Final = ("If", "Loop", "Scan")
_WIDE: Final = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
_SMALL_INTEGERS: Final = ("int4", "uint4", "int2", "uint2")


@dataclass(frozen=True, slots=True)
class Constant:
    """A tensor of the file: its values as they are stored, and their element type of ONNX."""

    values: NDArray[Any]
    element: int


@dataclass(frozen=True, slots=True)
class Step:
    """A node, and what to do with it: a rule, or None for the runtime and for bodies.

    ``keys`` tells the inputs apart in the whole model, ``free`` names what nobody reads any more
    after it.
    """

    node: Node
    rule: Rule | None
    inputs: tuple[str, ...]
    keys: tuple[str, ...]
    outputs: tuple[str, ...]
    free: tuple[str, ...]
    bodies: dict[str, "Body"]
    proto: onnx.NodeProto


@dataclass(frozen=True, slots=True)
class Body:
    """A graph: the outermost one, or one inside If, Loop or Scan.

    ``constants`` holds keys, the path and the name, by name; ``captured`` names what it reads of
    the graphs around it.
    """

    path: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    constants: dict[str, str]
    captured: tuple[str, ...]
    steps: list[Step]


@dataclass(frozen=True, slots=True)
class Program:
    """A model as steps.

    ``readers`` says by key which steps read a tensor, and in which input; ``makers`` which step
    makes it. ``joins`` tells whether all inputs leave the size of their first axis open, so that
    samples can be laid together.
    """

    top: Body
    constants: dict[str, Constant]
    readers: dict[str, list[tuple[Step, int]]]
    makers: dict[str, Step]
    opsets: dict[str, int]
    inputs: dict[str, int]
    outputs: dict[str, int]
    joins: bool


@dataclass(slots=True)
class _Compiler:
    weights: Weights
    opsets: dict[str, int]
    constants: dict[str, Constant] = field(default_factory=dict)
    readers: dict[str, list[tuple[Step, int]]] = field(default_factory=dict)
    makers: dict[str, Step] = field(default_factory=dict)

    def body(self, graph: onnx.GraphProto, path: str, around: dict[str, str]) -> Body:
        """Compile ``graph``; ``around`` gives the keys of tensors that it can see outside."""
        if graph.sparse_initializer:
            raise TrainingError("train: a graph with sparse initializers can't be trained")
        stored = {tensor.name: tensor for tensor in graph.initializer}
        nodes = []
        for node in graph.node:
            value = _constant_value(node)
            if value is None:
                nodes.append(node)
            else:
                stored[node.output[0]] = value
        own = {name: path + name for name in stored}
        for name, tensor in stored.items():
            self.constants[own[name]] = Constant(self.weights.values(tensor), tensor.data_type)
        inputs = tuple(value.name for value in graph.input)
        made = [*inputs, *(name for node in nodes for name in node.output if name)]
        visible = {**around, **{name: path + name for name in made}, **own}
        outputs = tuple(value.name for value in graph.output)
        steps = self._steps(nodes, path, visible, set(outputs))
        inside = {*made, *own}
        reads = [name for step in steps for name in _read(step)]
        captured = dict.fromkeys(n for n in (*reads, *outputs) if n and n not in inside)
        return Body(path, inputs, outputs, own, tuple(captured), steps)

    def _steps(
        self, nodes: list[onnx.NodeProto], path: str, visible: dict[str, str], kept: set[str]
    ) -> list[Step]:
        last: dict[str, int] = {}
        for number, node in enumerate(nodes):
            last.update(dict.fromkeys(captured_names(node), number))
            last.update((name, number) for name in node.output if name and name not in last)
        free: list[list[str]] = [[] for _ in nodes]
        for name, number in last.items():
            if name not in kept:
                free[number].append(name)
        steps = []
        for node, gone in zip(nodes, free, strict=True):
            step = self._step(node, path, visible, tuple(gone))
            steps.append(step)
            self.makers.update((path + name, step) for name in node.output if name)
            for slot, name in enumerate(step.keys):
                if name:
                    self.readers.setdefault(name, []).append((step, slot))
        return steps

    def _step(
        self, proto: onnx.NodeProto, path: str, visible: dict[str, str], free: tuple[str, ...]
    ) -> Step:
        domain = "" if proto.domain in STANDARD else proto.domain
        kind = f"{domain}:{proto.op_type}" if domain else proto.op_type
        key = path + first_name(proto.output)
        bodies: dict[str, Body] = {}
        attributes: dict[str, Any] = {}
        for attribute in proto.attribute:
            if attribute.type == AttributeProto.GRAPH:
                inner = f"{key}/{attribute.name}/"
                bodies[attribute.name] = self.body(attribute.g, inner, visible)
            else:
                attributes[attribute.name] = self._attribute(attribute)
        keys = tuple(visible.get(name, name) for name in proto.input)
        constants = [self.constants.get(name) for name in keys]
        types = tuple(0 if found is None else found.element for found in constants)
        opset = self.opsets.get(domain, 1)
        outputs = tuple(proto.output)
        node = Node(kind, key, opset, attributes, len(outputs), types)
        rule = None if kind in CONTROL else OPERATORS.get(kind)
        return Step(node, rule, tuple(proto.input), keys, outputs, free, bodies, proto)

    def _attribute(self, attribute: AttributeProto) -> Any:
        value = helper.get_attribute_value(attribute)
        if attribute.type == AttributeProto.STRING:
            return value.decode(errors="replace")
        if attribute.type == AttributeProto.TENSOR:
            return to_value(Constant(self.weights.values(attribute.t), attribute.t.data_type))
        return value


def compiled(model: Model) -> Program:
    """The steps of ``model``, its local functions put in place of their calls."""
    proto, weights = to_parts(model)
    if proto.functions:
        proto = inliner.inline_local_functions(proto)
    opsets = {("" if o.domain in STANDARD else o.domain): o.version for o in proto.opset_import}
    compiler = _Compiler(weights, opsets)
    top = compiler.body(proto.graph, "", {})
    return Program(
        top,
        compiler.constants,
        compiler.readers,
        compiler.makers,
        opsets,
        {value.name: value.type.tensor_type.elem_type for value in proto.graph.input},
        {value.name: value.type.tensor_type.elem_type for value in proto.graph.output},
        all(_is_open(value) for value in proto.graph.input if value.name not in top.constants),
    )


def _is_open(value: onnx.ValueInfoProto) -> bool:
    """Whether the first axis of an input may have any size."""
    dims = value.type.tensor_type.shape.dim
    return bool(dims) and dims[0].dim_value < 1


def to_value(constant: Constant) -> Value:
    """A constant as a run carries it: 16-bit floats are wide, strings stay an array."""
    values = constant.values
    if constant.element in _WIDE:
        values = values.astype(np.float32)
    elif values.dtype.name in _SMALL_INTEGERS:
        values = values.astype(np.int8 if values.dtype.name.startswith("int") else np.uint8)
    if values.dtype.kind not in "iufb":
        return values
    # A copy: what training changes must not change the model before it is asked to.
    return torch.from_numpy(np.array(values, values.dtype.newbyteorder("="), order="C"))


def _constant_value(node: onnx.NodeProto) -> TensorProto | None:
    """The tensor that a Constant node holds, where it holds one."""
    if node.op_type != "Constant" or node.domain not in STANDARD or len(node.attribute) != 1:
        return None
    attribute = node.attribute[0]
    return attribute.t if attribute.name == "value" else None


def _read(step: Step) -> Iterator[str]:
    yield from step.inputs
    for body in step.bodies.values():
        yield from body.captured
