"""Writing QuantizeLinear and DequantizeLinear so that onnxruntime forms integer kernels."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from onnxslim_tk.graph.activations import Gate, clip_range
from onnxslim_tk.graph.edit import (
    add_node,
    constant,
    input_at,
    is_constant,
    output_names,
    remove_node,
    rename_key,
    set_input,
    sole_reader,
    take_over,
    values_of,
    variable,
)
from onnxslim_tk.graph.fill import pad_codes, widen
from onnxslim_tk.graph.grids import LEVELS, Affine, on_grid, written_as
from onnxslim_tk.graph.layers import Layer
from onnxslim_tk.graph.model import Model, Tensor
from onnxslim_tk.graph.regions import Grid, Regions
from onnxslim_tk.graph.weight_grid import WeightGrid
from onnxslim_tk.graph.weight_slot import HALF
from onnxslim_tk.kernels.ranges import affine_parameters

Array = NDArray[Any]
_MOST_BIAS: Final = 2.0**30
# Products of scales below this would sink into what float32 cannot hold.
_LEAST_SCALE: Final = 1e-30
# A thirtieth of a code where 255 codes reach from zero to the bias.
_WHISPER: Final = 2.0**-13
_FLOAT: Final = 1


def write_regions(
    model: Model,
    regions: Regions,
    affine: Mapping[str, Affine],
    integer: Sequence[tuple[Layer, WeightGrid]],
    ranks: Mapping[str, int],
    extra: Mapping[str, int],
) -> dict[int, float | Array]:
    """Put Q and DQ around the regions, and the layers' weights and biases behind DQ.

    ``extra`` says how many channels of zeros a layer gets, by id. Gives what was added to
    the biases so that results fall on codes, by the ids of nodes.
    """
    input_names = {id(layer.node): layer.input.name for layer, _ in integer}
    shifts: dict[int, float | Array] = {}
    for node, absorbed in regions.absorbed:
        for follower in absorbed.nodes:
            take_over(model, node, follower, model.graph)
    members = {id(node) for node in regions.nodes}
    pads = {id(n): (n.inputs[0].name, n.outputs[0].name) for n in regions.others if n.op == "Pad"}
    constants = _Constants(model)
    codes: dict[str, Tensor] = {}
    for name, grid in regions.grids.items():
        written = written_as(grid, affine[name])
        if grid.maker is not None:
            shifts[id(grid.maker)] = written.shift
        parameters = (written.affine, written.over, affine[name])
        codes[name] = _quantize_tensor(model, grid, parameters, members, constants)
    for node in regions.others:
        if node.op == "Pad":
            pad_codes(model, node, pads[id(node)], codes, affine)
    for gate in regions.gates:
        name = gate.source.name
        _write_gate(model, gate, codes[name], affine[name], constants)
    for layer, weight in integer:
        name = input_names[id(layer.node)]
        shift = shifts.get(id(layer.node), 0.0)
        if layer.id in extra:
            weight = widen(model, layer, weight, codes[name], extra[layer.id])
            if layer.groups > 1 and np.size(shift) > 1:
                shift = np.pad(shift, (0, extra[layer.id]))
        _write_layer(model, layer, weight, affine[name], shift, ranks.get(name))
    return shifts


class _Constants:
    """Scales and zero points, one constant for each value."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.known: dict[bytes, Tensor] = {}

    def pair(self, affine: Affine) -> list[Tensor]:
        return [self.get(np.float32(affine.scale)), self.get(np.uint8(affine.zero_point))]

    def get(self, value: Any) -> Tensor:
        # Rank 0: onnxruntime fuses no integer kernel around scales of shape (1,).
        key = value.dtype.str.encode() + value.tobytes()
        if key not in self.known:
            self.known[key] = constant(self.model, value)
        return self.known[key]


def _quantize_tensor(
    model: Model,
    grid: Grid,
    parameters: tuple[Affine, Affine, Affine],
    members: set[int],
    constants: _Constants,
) -> Tensor:
    """Q and DQ behind a tensor; gives the tensor of codes.

    ``parameters`` are those to write with, those of what lies over a floor, and those to read with.
    """
    tensor, graph = grid.tensor, model.graph
    readers = [
        (node, k)
        for node in {id(n): n for n in tensor.outputs}.values()
        for k, value in enumerate(node.inputs)
        if value is tensor
        and (grid.made_in_integers or (id(node) in members and _is_data(node, k)))
    ]
    given_out = grid.made_in_integers and any(tensor is t for t in graph.outputs)
    source, target = tensor, variable(model, tensor)
    if given_out:
        # The output keeps its name; what the operator makes gets a new one.
        source, target = variable(model, tensor), tensor
        maker = tensor.inputs[0]
        key = next(k for k, t in enumerate(maker.outputs) if t is tensor)
        maker.outputs[key] = source
        if key == 0:
            rename_key(model, tensor.name, source.name)
    written, over, read = parameters
    codes = add_node(model, graph, "QuantizeLinear", [source, *constants.pair(written)])
    if grid.absorbed.least is not None:
        raised = add_node(model, graph, "DequantizeLinear", [codes, *constants.pair(over)])
        codes = _add_least(model, raised, grid.absorbed.least, read, constants)
    add_node(model, graph, "DequantizeLinear", [codes, *constants.pair(read)], [target])
    for node, k in readers:
        node.inputs[k] = target
    return codes


def _add_least(
    model: Model, raised: Tensor, least: Array, read: Affine, constants: _Constants
) -> Tensor:
    """What a channel has over its floor, and the floor: the codes of the sum."""
    low, high = float(least.min()), float(least.max())
    floor = Affine(*affine_parameters(min(low, 0.0), max(high, 0.0)))
    codes = constant(model, on_grid(least, floor))
    floors = add_node(model, model.graph, "DequantizeLinear", [codes, *constants.pair(floor)])
    total = add_node(model, model.graph, "Add", [raised, floors])
    return add_node(model, model.graph, "QuantizeLinear", [total, *constants.pair(read)])


def _write_gate(
    model: Model, gate: Gate, codes: Tensor, affine: Affine, constants: _Constants
) -> None:
    """The product of a value and its gate: the value's own codes, read on another scale.

    The low end of the grid is where the gate shuts; a Clip of the codes keeps it from opening
    wider than 1.
    """
    graph = model.graph
    source = (gate.inner or gate.node).inputs[0]
    scale = float(affine.scale) * gate.alpha
    widest = round(1 / scale)
    if widest < LEVELS:
        ends = [constants.get(np.uint8(0)), constants.get(np.uint8(widest))]
        codes = add_node(model, graph, "Clip", [codes, *ends])
    opening = Affine(np.float32(scale), 0)
    opened = add_node(model, graph, "DequantizeLinear", [codes, *constants.pair(opening)])
    if gate.inner is not None:
        remove_node(graph, gate.inner)
    gate.node.op, gate.node.attrs = "Mul", {}
    gate.node.inputs = [source, opened]


def _is_data(node: Any, index: int) -> bool:
    return index == 0 or node.op not in ("Conv", "Gemm", "MatMul", "Resize", "Reshape")


def _write_layer(
    model: Model,
    layer: Layer,
    weight: WeightGrid,
    source: Affine,
    shift: float | Array,
    rank: int | None,
) -> None:
    if layer.kind == "MatMul" and rank is not None:
        _keep_from_gemm(model, layer, rank)
    bias = input_at(layer.node, 2) if layer.node.op in ("Conv", "Gemm") else None
    scales = weight.scales.astype(np.float32)
    axis = 0 if layer.kind == "Conv" or layer.transposed else 1
    values = weight.values
    if bias is not None or (np.any(shift) and layer.node.op == "Conv"):
        known = np.zeros(1) if bias is None else values_of(bias).astype(np.float64).reshape(-1)
        floats = np.broadcast_to(known + shift, scales.shape)
        if layer.kind == "Conv":
            values, scales = _without_whispers(values, scales, floats, float(source.scale))
        # Tiny weights under a big bias: a coarser weight scale keeps the bias within 32 bits.
        least = np.maximum(np.abs(floats) / _MOST_BIAS, _LEAST_SCALE) / float(source.scale)
        coarser = np.maximum(scales, least.astype(np.float32))
        if np.any(coarser > scales):
            shape = [-1 if k == axis else 1 for k in range(values.ndim)]
            values = np.rint(values * (scales / coarser).reshape(shape))
            scales = coarser
        bias_scales = (scales * source.scale).astype(np.float32)
        codes = np.rint(floats / bias_scales.astype(np.float64)).astype(np.int32)
        parts = [constant(model, codes), constant(model, bias_scales)]
        dequantized = add_node(model, layer.graph, "DequantizeLinear", parts, attrs={"axis": 0})
        set_input(layer.node, 2, dequantized)
    parts = [constant(model, values.astype(np.int8)), constant(model, scales)]
    if layer.node.op == "Gemm":
        # onnxruntime 1.32 forms QGemm only where the weight's zero point is written out.
        parts.append(constant(model, np.zeros(scales.shape, np.int8)))
    dense = add_node(model, layer.graph, "DequantizeLinear", parts, attrs={"axis": axis})
    set_input(layer.node, 1, dense)
    if layer.kind != "Conv":
        _keep_product(model, layer)


def _without_whispers(
    values: Array, scales: Array, biases: Array, step: float
) -> tuple[Array, Array]:
    """A convolution's weight without the channels that move their output by no code.

    They can't add as much as a step of any grid that holds their bias. Zeros on the scale of other
    channels keep the bias within few bits, and all scales within the range of float16.
    """
    sums = np.abs(values.astype(np.float64)).reshape(len(values), -1).sum(axis=1)
    silent = scales * sums * step * LEVELS < np.abs(biases) * _WHISPER
    if not silent.any() or silent.all():
        return values, scales
    heard = np.sort(scales[~silent])
    shape = [-1] + [1] * (values.ndim - 1)
    return np.where(silent.reshape(shape), 0, values), np.where(
        silent, heard[len(heard) // 2], scales
    )


def _keep_product(model: Model, layer: Layer) -> None:
    """Keep onnxruntime from a float product that decodes its weight in every run.

    It forms no integer kernel where both a QuantizeLinear and something else read the product, nor
    where a Relu or a Clip does whose result is no codes. A Max is neither, and does the same.
    """
    outputs, product = output_names(model), layer.node.outputs[0]
    codes = [node for node in product.outputs if node.op == "QuantizeLinear"]
    if codes and (len(codes) < len(product.outputs) or product.name in outputs):
        copy = add_node(model, layer.graph, "Max", [product])
        for node in codes:
            node.inputs[0] = copy
        return
    reader = sole_reader(product, outputs)
    ends = None if reader is None else clip_range(reader)
    if reader is None or ends is None:
        return
    if any(node.op == "QuantizeLinear" for node in reader.outputs[0].outputs):
        return
    result, (low, high) = reader.outputs[0], ends
    remove_node(layer.graph, reader)
    for op, end in (("Max", low), ("Min", high)):
        if end is not None:
            last = op == "Min" or high is None
            parts = [product, constant(model, np.float32(end))]
            product = add_node(model, layer.graph, op, parts, [result] if last else None)


def _keep_from_gemm(model: Model, layer: Layer, rank: int) -> None:
    """Keep onnxruntime from turning MatMul and Add into a Gemm that runs in float.

    Behind a MatMul of rank 2 the two become an integer Gemm; elsewhere a bias of full rank is
    not fused. What adds no constant, as where two products meet, leaves a Gemm without bias.
    """
    outputs = output_names(model)
    bias, add = layer.bias(outputs), sole_reader(layer.output, outputs)
    if add is None or add.op != "Add":
        return
    if bias is None:
        if rank == 2 and not any(is_constant(tensor) for tensor in add.inputs):
            layer.node.op = "Gemm"
        return
    values = values_of(bias)
    if rank == 2 and values.ndim <= 2:
        node = layer.node
        node.op = "Gemm"
        node.inputs.append(constant(model, values.reshape(-1)))
        take_over(model, node, add, layer.graph, layer.path)
    elif values.ndim < rank:
        wide = constant(model, values.reshape([1] * (rank - 1) + [-1]))
        add.inputs[next(k for k, t in enumerate(add.inputs) if t is bias)] = wide


def gather_rows(model: Model, layer: Layer, grid: WeightGrid) -> None:
    """Embedding rows gathered as int8, then scaled: only rows that are read become float."""
    node, graph, indices = layer.node, layer.graph, layer.input
    output, half = node.outputs[0], layer.is_half
    remove_node(graph, node)
    rows = add_node(
        model, graph, "Gather", [constant(model, grid.values), indices], attrs={"axis": 0}
    )
    rename_key(model, layer.path + output.name, layer.path + rows.name)
    scale = constant(model, grid.scales.astype(np.float32)[:, None])
    scales = add_node(model, graph, "Gather", [scale, indices], attrs={"axis": 0})
    wide = add_node(model, graph, "Cast", [rows], attrs={"to": _FLOAT})
    scaled = add_node(model, graph, "Mul", [wide, scales], None if half else [output])
    if half:
        add_node(model, graph, "Cast", [scaled], [output], attrs={"to": HALF})
