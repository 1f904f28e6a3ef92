"""The storage operators of a model that compute from constants alone, and what they read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import onnx
from onnx import TensorProto

from onnxslim_tk.graph.domains import STANDARD_DOMAINS
from onnxslim_tk.graph.weights import Weights
from onnxslim_tk.packing.operators import OPERATORS, attribute
from onnxslim_tk.packing.scopes import Key, Scope

_INTEGERS = (TensorProto.INT8, TensorProto.UINT8, TensorProto.INT4, TensorProto.UINT4)
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)

# Through these, a Cast of small integers still reaches the Mul that scales it.
_CARRIERS = frozenset(
    {
        "Add",
        "Concat",
        "Expand",
        "Identity",
        "Reshape",
        "Slice",
        "Squeeze",
        "Sub",
        "Transpose",
        "Unsqueeze",
    }
)


@dataclass(frozen=True, eq=False)
class Step:
    """A storage operator all of whose inputs are constants."""

    node: onnx.NodeProto
    scope: Scope
    inputs: tuple[Key, ...]

    @property
    def key(self) -> Key:
        """The value that it makes."""
        return self.scope, self.node.output[0]


Steps = dict[Key, Step]
Stored = dict[Key, TensorProto]


def stored_constants(found: list[Scope], weights: Weights) -> Stored:
    """Return the initializers that nobody can override."""
    return {
        (scope, tensor.name): tensor
        for scope in found
        for inputs in [{v.name for v in scope.graph.input}]
        for tensor in scope.graph.initializer
        if tensor.name not in inputs
        and tensor.data_type != TensorProto.STRING
        and weights.holds(tensor)
    }


def find_steps(found: list[Scope], stored: Stored, blocked: set[Key]) -> Steps:
    """Return every step that isn't blocked, each after those that it reads."""
    steps: Steps = {}
    for scope in found:
        outputs = {v.name for v in scope.graph.output}
        for node in scope.graph.node:
            if node.op_type not in OPERATORS or node.domain not in STANDARD_DOMAINS:
                continue
            if len(node.output) != 1 or node.output[0] in outputs:
                continue
            inputs = keys_of(scope, node.input)
            step = Step(node, scope, tuple(key for key in inputs if key is not None))
            known = all(key is not None and (key in stored or key in steps) for key in inputs)
            if known and step.key not in blocked:
                steps[step.key] = step
    return steps


def keys_of(scope: Scope, names: Iterable[str]) -> list[Key | None]:
    """Resolve names as the nodes of ``scope`` read them; None for none or an unknown one."""
    keys: list[Key | None] = []
    for name in names:
        owner = scope.owner(name) if name else None
        keys.append(None if owner is None else (owner, name))
    return keys


def scaled_steps(steps: Steps, stored: Stored) -> set[Key]:
    """Return the steps from a Cast of small integers to the multiplication that scales them."""
    reach: dict[Key, set[Key]] = {}
    found: set[Key] = set()
    for key, step in steps.items():
        before = [reach[source] for source in step.inputs if source in reach]
        if step.node.op_type == "Cast":
            widens = attribute(step.node, "to") in _FLOATS
            if widens and _type(step.inputs[0], steps, stored) in _INTEGERS:
                reach[key] = {key}
        elif before and step.node.op_type in _CARRIERS:
            reach[key] = {key}.union(*before)
        elif before and step.node.op_type == "Mul":
            found |= {key}.union(*before)
    return found


def _type(key: Key, steps: Steps, stored: Stored) -> int:
    """Return the element type of a constant; all operators but two keep that of their input."""
    while key in steps:
        step = steps[key]
        if step.node.op_type == "Cast":
            return int(attribute(step.node, "to"))
        if step.node.op_type == "ConstantOfShape":
            value = attribute(step.node, "value")
            return TensorProto.FLOAT if value is None else int(value.data_type)
        key = step.inputs[0]
    return stored[key].data_type


def end_steps(found: list[Scope], steps: Steps) -> Iterator[Step]:
    """Yield, in order, the steps whose value something else than a step reads."""
    read: set[Key | None] = set()
    for scope in found:
        read.update(keys_of(scope, [v.name for v in scope.graph.output]))
        for node in scope.graph.node:
            if not node.output or (scope, node.output[0]) not in steps:
                read.update(keys_of(scope, node.input))
    return (step for key, step in steps.items() if key in read)
