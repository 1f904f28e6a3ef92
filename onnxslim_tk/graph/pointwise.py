"""Functions of single values that several nodes spell together."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, TensorProto, helper
from onnx.reference import ReferenceEvaluator
from onnx_graphsurgeon.exporters.onnx_exporter import OnnxExporter

from onnxslim_tk.graph.domains import STANDARD_DOMAINS
from onnxslim_tk.graph.edit import is_constant, producer, values_of
from onnxslim_tk.graph.model import Node, Tensor

Array = NDArray[Any]
Course = Literal["rising", "falling", "valley"]

POINTWISE: Final = (
    frozenset(("Abs", "Add", "Clip", "Div", "Elu", "Erf", "Exp", "Gelu", "HardSigmoid"))
    | frozenset(("HardSwish", "LeakyRelu", "Max", "Min", "Mish", "Mul", "Neg", "Pow"))
    | frozenset(("Relu", "Selu", "Sigmoid", "Softplus", "Softsign", "Sub", "Tanh"))
)
"""Operators that make each value of one value, or of two in the same place."""

_FAILURES: Final = (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError)
# Of 64 bits, in which functions are looked at; one of large terms loses some digits.
_ROUNDING: Final = 1e-13
_DECADES: Final = 6
_NEAR: Final = 64.0
_STEPS: Final = 1 << 15
_LARGEST: Final = 1e4


@dataclass(frozen=True, slots=True, eq=False)
class Spelled:
    """``result`` as a function of ``source`` alone, spelled by ``nodes`` from front to back.

    Their other inputs are constants, and nothing else reads what lies between.
    """

    source: Tensor
    nodes: tuple[Node, ...]
    result: Tensor

    def values(self, at: Array, opset: int, constants: Callable[[Array], Array]) -> Array | None:
        """The function of ``at``, float64; ``constants`` may reshape what the nodes hold."""
        known = {
            tensor.name: constants(values_of(tensor)).astype(np.float64)
            for node in self.nodes
            for tensor in node.inputs
            if not tensor.is_empty() and is_constant(tensor)
        }
        graph = GraphProto(name="spelled")
        graph.node.extend(OnnxExporter.export_node(node) for node in self.nodes)
        for name in (self.source.name, *known):
            graph.input.append(helper.make_tensor_value_info(name, TensorProto.DOUBLE, None))
        result = helper.make_tensor_value_info(self.result.name, TensorProto.DOUBLE, None)
        graph.output.append(result)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
        try:
            with np.errstate(all="ignore"):
                (found,) = ReferenceEvaluator(model).run(None, {self.source.name: at, **known})
        except _FAILURES:
            return None
        values = np.asarray(found)
        return values if values.shape == at.shape and values.dtype == np.float64 else None


def spelled_behind(
    result: Tensor, fixed: set[str], here: set[int], takes: Callable[[Array], bool]
) -> Iterator[Spelled]:
    """``result`` as functions of ever earlier tensors, the nearest first.

    ``fixed`` names what graphs give out, ``here`` holds the ids of the graph's nodes; constants
    of the nodes must satisfy ``takes``.
    """
    nodes: list[Node] = []
    inside: set[int] = set()
    ends = [result]
    while True:
        grown = next(
            (t for t in ends if _is_inner(t, result, inside, fixed, here) and _joins(t, takes)),
            None,
        )
        if grown is None:
            return
        node = grown.inputs[0]
        nodes.append(node)
        inside.add(id(node))
        inputs = [t for t in node.inputs if not t.is_empty() and not is_constant(t)]
        ends = _distinct([*(t for t in ends if t is not grown), *inputs])
        if len(ends) == 1:
            yield Spelled(ends[0], tuple(reversed(nodes)), result)


def _is_inner(
    tensor: Tensor, result: Tensor, inside: set[int], fixed: set[str], here: set[int]
) -> bool:
    """Whether the node that gives ``tensor`` may be taken in: all that reads it is in already."""
    node = producer(tensor)
    if node is None or id(node) not in here or id(node) in inside:
        return False
    alone = tensor.name not in fixed and all(id(reader) in inside for reader in tensor.outputs)
    return tensor is result or alone


def _joins(tensor: Tensor, takes: Callable[[Array], bool]) -> bool:
    node = tensor.inputs[0]
    return is_pointwise(node) and all(takes(values) for values in constants_of(node))


def is_pointwise(node: Node) -> bool:
    """Whether ``node`` is one of :data:`POINTWISE`, with float32 constants at most beside it."""
    if node.op not in POINTWISE or node.domain not in STANDARD_DOMAINS or len(node.outputs) != 1:
        return False
    constants = [t for t in node.inputs if not t.is_empty() and is_constant(t)]
    return all(tensor.dtype == np.float32 for tensor in constants)


def constants_of(node: Node) -> list[Array]:
    """The values of the constants that ``node`` reads."""
    return [values_of(t) for t in node.inputs if not t.is_empty() and is_constant(t)]


def course(spelled: Spelled, opset: int) -> Course | None:
    """Whether a function of single numbers only rises, only falls, or falls and then rises.

    As far as numbers up to a million tell; None for every other, and where it isn't finite.
    """
    numbers = [np.abs(values).max(initial=0) for n in spelled.nodes for values in constants_of(n)]
    if not max(numbers, default=0) <= _LARGEST:
        return None
    far = np.logspace(-_DECADES, _DECADES, _STEPS)
    near = np.linspace(-_NEAR, _NEAR, _STEPS + 1)
    at = np.unique(np.concatenate([-far, near, far]))
    values = spelled.values(at, opset, lambda held: held.reshape(()))
    if values is None or not np.isfinite(values).all():
        return None
    slack = _ROUNDING * (np.abs(values) + np.abs(at))
    lowest = int(values.argmin())
    if _rises(values, slack):
        return "rising"
    if _rises(-values, slack):
        return "falling"
    falls = _rises(-values[: lowest + 1], slack[: lowest + 1])
    return "valley" if falls and _rises(values[lowest:], slack[lowest:]) else None


def _rises(values: Array, slack: Array) -> bool:
    """Whether no value lies below one before it: many small steps down add up."""
    return bool((np.maximum.accumulate(values) - values <= slack).all())


def _distinct(tensors: Sequence[Tensor]) -> list[Tensor]:
    return list({id(tensor): tensor for tensor in tensors}.values())
