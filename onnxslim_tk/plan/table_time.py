"""How long a whole model takes by the target's table, without a clock."""

from collections.abc import Iterator
from math import prod
from typing import Final

from onnxslim_tk.graph.edit import is_constant, output_names
from onnxslim_tk.graph.layer import Layer
from onnxslim_tk.graph.layers import layers
from onnxslim_tk.graph.model import Model, Node
from onnxslim_tk.measure.validate import runs_in_integers
from onnxslim_tk.plan.placement import FUSED
from onnxslim_tk.plan.targets import Target, Work
from onnxslim_tk.plan.work import Shapes, layer_work, node_work

_CONVERSIONS: Final = ("QuantizeLinear", "DequantizeLinear")
_PRODUCTS: Final = ("Gemm", "MatMul")
# What only renames values works on codes as well.
_RENAMING: Final = ("Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze")


def table_time(model: Model, shapes: Shapes, target: Target) -> float:
    """Microseconds of one run of ``model``, dense as it is after decoding.

    ``shapes`` are those seen in a run of it. What the table has no row for counts nothing, nor do
    bodies, whose runs nobody can foretell.
    """
    return _Clockless(model, shapes, target).time()


class _Clockless:
    """One model's nodes, and which of them run in integers."""

    def __init__(self, model: Model, shapes: Shapes, target: Target) -> None:
        self._shapes, self._target = shapes, target
        self._outputs = output_names(model)
        self._layers = {id(layer.node): layer for layer in layers(model) if not layer.path}
        self._folded: set[int] = set()
        self._nodes = [node for node in model.graph.nodes if not self._is_folded(node)]
        self._integer = {id(node) for node in self._nodes if self._in_integers(node)}

    def time(self) -> float:
        return sum(self._time(node) for node in self._nodes)

    def _is_folded(self, node: Node) -> bool:
        """Whether the runtime computes a node once, at load: constants alone go into it."""
        known = all(
            is_constant(t) or (t.inputs and id(t.inputs[0]) in self._folded)
            for t in node.inputs
            if t.name
        )
        if known and node.inputs:
            self._folded.add(id(node))
        return known

    def _in_integers(self, node: Node) -> bool:
        layer = self._layers.get(id(node))
        if layer is not None:
            written = runs_in_integers(layer)
            return written and (layer.kind in _PRODUCTS or self._gives_codes(node))
        known = node.op in self._target.integers or node.op in _RENAMING
        if node.op in _CONVERSIONS or not known:
            return False
        makers = [t.inputs[0].op for t in node.inputs if t.inputs and not is_constant(t)]
        read = bool(makers) and set(makers) == {"DequantizeLinear"}
        return read and self._gives_codes(node)

    def _gives_codes(self, node: Node) -> bool:
        readers = [reader.op for tensor in node.outputs for reader in tensor.outputs]
        inner = not any(tensor.name in self._outputs for tensor in node.outputs)
        return inner and bool(readers) and set(readers) == {"QuantizeLinear"}

    def _time(self, node: Node) -> float:
        layer = self._layers.get(id(node))
        if layer is not None:
            return self._layer_time(layer, id(node) in self._integer)
        if node.op == "MatMulInteger":
            return self._dynamic_time(node)
        if node.op in _CONVERSIONS:
            free = self._is_inside(node)
        else:
            free = self._is_fused(node) or any(n.op == "MatMulInteger" for n in _behind(node))
        work = None if free else node_work(node, self._shapes)
        if work is None:
            return 0.0
        if id(node) in self._integer or node.op in _CONVERSIONS:
            return self._target.integer_time(work)
        return self._target.float_time(work)

    def _layer_time(self, layer: Layer, integer: bool) -> float:
        work = layer_work(layer, self._shapes)
        if work is None:
            return 0.0
        return self._target.integer_time(work) if integer else self._target.float_time(work)

    def _dynamic_time(self, node: Node) -> float:
        given, weight = self._shapes.get(node.outputs[0].name), node.inputs[1]
        if given is None or not is_constant(weight):
            return 0.0
        size, inner = prod(weight.shape), int(weight.shape[-2])
        channels = inner, int(weight.shape[-1])
        work = Work("MatMul", prod(given), prod(given) * inner, weights=size, channels=channels)
        return self._target.dynamic_time(work)

    def _is_inside(self, node: Node) -> bool:
        """Whether a change of numbers is part of an integer kernel."""
        if node.op == "QuantizeLinear":
            return bool(node.inputs[0].inputs) and id(node.inputs[0].inputs[0]) in self._integer
        tensor = node.outputs[0]
        return tensor.name not in self._outputs and all(
            id(reader) in self._integer for reader in tensor.outputs
        )

    def _is_fused(self, node: Node) -> bool:
        """Whether the runtime computes a node together with the float convolution before it."""
        if node.op not in FUSED or not node.inputs[0].inputs:
            return False
        maker = node.inputs[0].inputs[0]
        return (
            maker.op == "Conv" and len(maker.outputs[0].outputs) == 1 and id(maker) in self._layers
        )


def _behind(node: Node) -> Iterator[Node]:
    """The nodes that a node reads, and one step further: what a dynamic product is made of."""
    for tensor in node.inputs:
        for maker in tensor.inputs:
            yield maker
            yield from (n for t in maker.inputs for n in t.inputs)
