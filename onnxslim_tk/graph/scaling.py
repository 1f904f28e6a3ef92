"""Scale groups: channels that can be multiplied by numbers that what reads them takes back."""

from collections.abc import Mapping, Sequence
from math import prod

import numpy as np
from numpy.typing import NDArray

from onnxslim_tk.graph.domains import STANDARD_DOMAINS
from onnxslim_tk.graph.edit import input_at, is_constant, producer, values_of
from onnxslim_tk.graph.layers import layer_of
from onnxslim_tk.graph.model import Model, Node, Tensor
from onnxslim_tk.graph.order import ordered
from onnxslim_tk.graph.scale_flow import Edit, Flow, ScaleGroup
from onnxslim_tk.graph.scale_rules import RULES


def scale_groups(model: Model, shapes: Mapping[str, tuple[int, ...]]) -> list[ScaleGroup]:
    """The groups of the outermost graph, in its order; ``shapes`` are those seen in a run.

    Between layers: over all that keeps factors that are positive (Nagel et al., 2019; Meller et
    al., 2019). Behind a LayerNormalization: from its own scale and bias into the layers that
    read it, other readers getting it as it was (Xiao et al., 2023).
    """
    flow = Flow(model, shapes)
    for node in ordered(model.graph):
        _follow(flow, node)
    normal = [_normalized(flow, node) for node in ordered(model.graph)]
    found = [g for g in flow.groups() if g.readers and g.makers and not g.barred]
    return [*found, *(group for group in normal if group is not None)]


def _follow(flow: Flow, node: Node) -> None:
    """Carry the channels of the inputs over to the first output."""
    spans = [flow.span(tensor) for tensor in node.inputs]
    rule = RULES.get(node.op) if node.domain in STANDARD_DOMAINS else None
    known = all(t.name in flow.shapes for t in (*node.inputs, *node.outputs[:1]) if _flows(t))
    out = rule(flow, node, spans) if rule is not None and known else None
    if out is None:
        flow.bar(spans)
        return
    if any(tensor.outputs for tensor in node.outputs[1:]):
        flow.bar([*spans, out])
    flow.carry(node.outputs[0], out)


def _flows(tensor: Tensor) -> bool:
    return not is_constant(tensor) and not tensor.is_empty()


def _normalized(flow: Flow, node: Node) -> ScaleGroup | None:
    """The group behind a LayerNormalization, fused or written as Mul and Add of vectors."""
    tensor = node.outputs[0] if node.outputs else None
    vectors = None if tensor is None else _vectors(node)
    if tensor is None or vectors is None or tensor.name in flow.fixed:
        return None
    shape = flow.shapes.get(tensor.name, ())
    sizes = {prod(holder.inputs[slot].shape) for holder, slot in vectors}
    if len(shape) < 2 or sizes != {shape[-1]}:
        return None
    group = ScaleGroup(shape[-1])
    for holder, slot in vectors:
        group.edits.append(Edit(holder, slot, len(holder.inputs[slot].shape) - 1, 1, 1))
    for reader in {id(n): n for n in tensor.outputs}.values():
        layer = layer_of(flow.model, reader, flow.model.graph, "")
        matrix = layer is not None and layer.kind in ("Gemm", "MatMul") and not layer.obstacle(0)
        if layer is not None and matrix and reader.inputs[0] is tensor:
            group.readers.append(layer)
            group.edits.append(Edit(reader, 1, 1 - layer.channel_axis, 1, -1))
        elif reader.op != "Shape":
            group.restored.append((reader, tensor))
    return group if group.readers else None


def _vectors(node: Node) -> list[tuple[Node, int]] | None:
    """Where the scale and the bias of a normalization stand, as node and slot."""
    if node.domain not in STANDARD_DOMAINS:
        return None
    if node.op == "LayerNormalization":
        slots = [k for k in (1, 2) if input_at(node, k) is not None]
        single = len(node.outputs) == 1 and int(node.attrs.get("axis", -1)) == -1
        return [(node, k) for k in slots] if single and _constant(node, slots) else None
    if node.op != "Add":
        return None
    for slot in (0, 1):
        maker = producer(node.inputs[1 - slot])
        if not is_constant(node.inputs[slot]) or maker is None or maker.op != "Mul":
            continue
        lone = len(maker.outputs[0].outputs) == 1
        place = next((k for k in (0, 1) if is_constant(maker.inputs[k])), None)
        if lone and place is not None and _is_normal(maker.inputs[1 - place]):
            return [(maker, place), (node, slot)]
    return None


def _constant(node: Node, slots: Sequence[int]) -> bool:
    return all(is_constant(node.inputs[k]) for k in slots)


def _is_normal(tensor: Tensor) -> bool:
    """Whether ``tensor`` was divided by a deviation: Div by, or Mul with one over, a Sqrt."""
    maker = producer(tensor)
    if maker is None or maker.op not in ("Div", "Mul"):
        return False
    divisor = producer(maker.inputs[1])
    if divisor is not None and divisor.op == "Reciprocal":
        divisor = producer(divisor.inputs[0])
    return divisor is not None and divisor.op == "Sqrt"


def rescaled(edit: Edit, factors: NDArray[np.float64]) -> NDArray[np.float32]:
    """The constant of ``edit`` with its channels multiplied by ``factors``, float32."""
    values = values_of(edit.node.inputs[edit.slot])
    shape = [1] * values.ndim
    shape[edit.axis] = -1
    wide = np.repeat(factors**edit.power, edit.block).reshape(shape)
    return np.asarray(values * wide, np.float32)
