"""Other ways to say the same, which the runtime runs faster or in integers."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import isclose, prod
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from onnxslim_tk.graph.activations import clip_range, scalar_affine
from onnxslim_tk.graph.domains import STANDARD_DOMAINS
from onnxslim_tk.graph.edit import (
    add_node,
    constant,
    drop_unused,
    input_at,
    is_constant,
    output_names,
    remove_node,
    rename_key,
    set_input,
    sole_reader,
    values_of,
    variable,
)
from onnxslim_tk.graph.evaluate import bytes_of
from onnxslim_tk.graph.inference import infer_types
from onnxslim_tk.graph.lookups import fold_rows, one_hot_of, rows_behind, write_look_up
from onnxslim_tk.graph.maxima import peak_of, write_peak
from onnxslim_tk.graph.model import Graph, Model, Node, Tensor, bodies, file_bytes

Array = NDArray[Any]
# Functions of single values, which may as well come before the pixels are put in their places.
_POINTWISE: Final = frozenset(
    {"Clip", "Elu", "HardSigmoid", "HardSwish", "LeakyRelu", "Relu", "Sigmoid", "Tanh"}
)


@dataclass(frozen=True, slots=True, eq=False)
class Equivalent:
    """A rewrite that changes no value beyond rounding: where it is, and what it makes."""

    node: Node
    graph: Graph
    path: str
    kind: str

    @property
    def stands(self) -> bool:
        """Whether its node is still there: another rewrite may have taken it in."""
        return bool(self.node.outputs)


def equivalents(model: Model) -> Iterator[Equivalent]:
    """All rewrites that can be made now, bodies included."""
    outputs, types, opset = output_names(model), infer_types(model), model.graph.opset
    for path, graph in bodies(model.graph):
        here = {id(node) for node in graph.nodes}
        for node in list(graph.nodes):
            if node.domain not in STANDARD_DOMAINS:
                continue
            if node.op == "Clip" and _hard_sigmoid(node, outputs, here) is not None:
                yield Equivalent(node, graph, path, "HardSigmoid")
            elif node.op == "ConvTranspose" and _tiles(node, outputs):
                yield Equivalent(node, graph, path, "DepthToSpace")
            elif one_hot_of(node, types, opset) is not None:
                yield Equivalent(node, graph, path, "Gather")
            elif rows_behind(node, graph, outputs, types) is not None:
                yield Equivalent(node, graph, path, "rows of a table")
            elif peak_of(node, graph, outputs, types, opset) is not None:
                yield Equivalent(node, graph, path, "maximum before its function")


def rewrite(model: Model, found: Equivalent) -> int:
    """Make one rewrite in place; gives the bytes that the file loses by it."""
    if found.kind == "HardSigmoid":
        return _write_hard_sigmoid(model, found)
    if found.kind == "DepthToSpace":
        return _write_tiles(model, found)
    before = file_bytes(model)
    outputs, types = output_names(model), infer_types(model)
    if found.kind == "maximum before its function":
        peak = peak_of(found.node, found.graph, outputs, types, model.graph.opset)
        if peak is not None:
            write_peak(model, found.graph, peak, found.path)
    else:
        encoded = one_hot_of(found.node, types, model.graph.opset)
        if encoded is not None:
            write_look_up(model, found.graph, found.node, encoded)
        behind = rows_behind(found.node, found.graph, outputs, types)
        if behind is not None:
            fold_rows(model, found.graph, found.path, found.node, behind)
    drop_unused(model)
    return before - file_bytes(model)


@dataclass(frozen=True, slots=True, eq=False)
class _Gated:
    """``clip(x + shift, 0, high) / high``, where a product with ``x`` may stand in between."""

    source: Tensor
    add: Node
    scale: Node
    product: Node | None
    shift: float
    high: float


def _hard_sigmoid(clip: Node, outputs: set[str], here: set[int]) -> _Gated | None:
    ends, last = clip_range(clip), clip.outputs[0]
    add = clip.inputs[0].inputs[0] if clip.inputs[0].inputs else None
    if ends is None or ends[0] != 0.0 or not ends[1] or ends[1] <= 0 or add is None:
        return None
    if sole_reader(clip.inputs[0], outputs) is not clip or add.op not in ("Add", "Sub"):
        return None
    lines = [(t, scalar_affine(add, t)) for t in add.inputs if not is_constant(t)]
    source, line = lines[0] if len(lines) == 1 else (None, None)
    if source is None or line is None or line[0] != 1.0 or not 0 < line[1] < ends[1]:
        return None
    product: Node | None = None
    behind = sole_reader(last, outputs)
    if behind is not None and behind.op == "Mul" and _reads(behind, source):
        last = behind.outputs[0]
        product = behind
        behind = sole_reader(last, outputs)
    if behind is None or behind.domain not in STANDARD_DOMAINS:
        return None
    factor = scalar_affine(behind, last)
    if factor is None or factor[1] != 0 or not isclose(factor[0] * ends[1], 1.0, rel_tol=1e-6):
        return None
    involved = [add, behind, *([] if product is None else [product])]
    if not all(id(node) in here for node in involved):
        return None
    return _Gated(source, add, behind, product, line[1], ends[1])


def _reads(node: Node, tensor: Tensor) -> bool:
    return any(value is tensor for value in node.inputs)


def _write_hard_sigmoid(model: Model, found: Equivalent) -> int:
    """Add, Clip, and a division by the upper end become a HardSigmoid."""
    clip, graph, path = found.node, found.graph, found.path
    gated = _hard_sigmoid(clip, output_names(model), {id(node) for node in graph.nodes})
    if gated is None:
        return 0
    product = [] if gated.product is None else [gated.product]
    before = bytes_of([gated.add, clip, gated.scale, *product])
    result = gated.scale.outputs[0]
    key = path + result.name
    opened = result if gated.product is None else variable(model, result)
    for node in (gated.add, clip, gated.scale):
        remove_node(graph, node)
    attrs = {"alpha": 1.0 / gated.high, "beta": gated.shift / gated.high}
    add_node(model, graph, "HardSigmoid", [gated.source], [opened], attrs)
    if gated.product is not None:
        gated.product.inputs = [gated.source, opened]
        rename_key(model, path + gated.product.outputs[0].name, key)
        gated.product.outputs = [result]
    return before - bytes_of([*opened.inputs, *product])


def _tiles(node: Node, outputs: set[str]) -> bool:
    """Whether every pixel that a ConvTranspose reads becomes a tile of its own."""
    weight, bias = input_at(node, 1), input_at(node, 2)
    if weight is None or not is_constant(weight) or weight.dtype != np.float32:
        return False
    if bias is not None and not (is_constant(bias) and bias.dtype == np.float32):
        return False
    if len(weight.shape) != 4 or len(weight.outputs) != 1 or weight.name in outputs:
        return False
    kernel, attrs = list(weight.shape[2:]), node.attrs
    fits = kernel[0] == kernel[1] > 1 and list(attrs.get("strides", [1, 1])) == kernel
    plain = not any(attrs.get("pads", [])) and not any(attrs.get("output_padding", []))
    auto = attrs.get("auto_pad", "NOTSET") in ("NOTSET", "VALID")
    single = attrs.get("group", 1) == 1 and all(d == 1 for d in attrs.get("dilations", [1]))
    return fits and plain and auto and single and "output_shape" not in attrs


def _write_tiles(model: Model, found: Equivalent) -> int:
    """A 1x1 Conv makes the pixels of each tile as channels; DepthToSpace puts them in place."""
    node, graph = found.node, found.graph
    before = bytes_of([node])
    weight, bias = values_of(node.inputs[1]), input_at(node, 2)
    size, positions = int(weight.shape[2]), prod(weight.shape[2:])
    rows = weight.transpose(2, 3, 1, 0).reshape(-1, weight.shape[0], 1, 1)
    set_input(node, 1, constant(model, np.ascontiguousarray(rows)))
    if bias is not None:
        set_input(node, 2, constant(model, np.tile(values_of(bias).reshape(-1), positions)))
    node.op, node.attrs = "Conv", {"kernel_shape": [1, 1]}
    outputs, last = output_names(model), node
    while True:
        reader = sole_reader(last.outputs[0], outputs)
        known = reader is not None and reader.domain in STANDARD_DOMAINS and reader.op in _POINTWISE
        if reader is None or not known or not any(reader is n for n in graph.nodes):
            break
        last = reader
    result = last.outputs[0]
    inner = variable(model, result)
    last.outputs = [inner]
    rename_key(model, found.path + result.name, found.path + inner.name)
    add_node(model, graph, "DepthToSpace", [inner], [result], {"blocksize": size, "mode": "DCR"})
    return before - bytes_of([node, *result.inputs])
