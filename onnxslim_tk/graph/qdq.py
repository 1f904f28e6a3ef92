"""Writing QuantizeLinear and DequantizeLinear so that onnxruntime forms integer kernels."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from onnxslim_tk.graph.edit import (
    add_node,
    constant,
    input_at,
    output_names,
    remove_node,
    rename_key,
    set_input,
    sole_reader,
    take_over,
    values_of,
    variable,
)
from onnxslim_tk.graph.layers import Layer
from onnxslim_tk.graph.model import Model, Tensor
from onnxslim_tk.graph.regions import Grid, Regions
from onnxslim_tk.graph.weight_slot import HALF
from onnxslim_tk.kernels.rounding import symmetric_scales, to_grid

Array = NDArray[Any]
_MOST_BIAS: Final = 2.0**30
# Products of scales below this would sink into what float32 cannot hold.
_LEAST_SCALE: Final = 1e-30
_FLOAT: Final = 1


@dataclass(frozen=True, slots=True)
class Affine:
    """A uint8 grid: value = scale * (code - zero_point)."""

    scale: np.float32
    zero_point: int


@dataclass(frozen=True, slots=True)
class WeightGrid:
    """A weight as int8 ``values`` in its own shape and one float32 scale per channel."""

    values: Array
    scales: Array

    def dense(self, layer: Layer) -> Array:
        """The float weight that the values stand for."""
        return np.asarray(self.values.astype(np.float32) * layer.along(self.scales))


def weight_grid(layer: Layer, bits: int = 8) -> WeightGrid:
    """Int8 values and scales per output channel; values that lie on a grid already stay."""
    if layer.scale is not None:
        values = np.asarray(layer.stored.values)
        scales = np.broadcast_to(layer.scale.astype(np.float32), (prod(layer.scale_shape),))
        return WeightGrid(values, scales.copy())
    flat = layer.by_channel(layer.weight).astype(np.float64)
    scales = symmetric_scales(flat, bits).astype(np.float32)
    values = to_grid(flat, scales.astype(np.float64), bits)
    return WeightGrid(layer.from_channels(values), scales)


def write_regions(
    model: Model,
    regions: Regions,
    affine: Mapping[str, Affine],
    integer: Sequence[tuple[Layer, WeightGrid]],
    ranks: Mapping[str, int],
) -> None:
    """Put Q and DQ around the regions, and the layers' weights and biases behind DQ."""
    input_names = {id(layer.node): layer.input.name for layer, _ in integer}
    for node, activation in regions.absorbed:
        take_over(model, node, activation, model.graph)
    members = {id(node) for node in regions.nodes}
    constants = _Constants(model)
    for grid in regions.grids.values():
        _quantize_tensor(model, grid, affine[grid.tensor.name], members, constants)
    for layer, weight in integer:
        name = input_names[id(layer.node)]
        _write_layer(model, layer, weight, affine[name], ranks.get(name))


class _Constants:
    """Scales and zero points, one constant for each value."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.known: dict[bytes, Tensor] = {}

    def pair(self, affine: Affine) -> list[Tensor]:
        return [self._get(np.float32(affine.scale)), self._get(np.uint8(affine.zero_point))]

    def _get(self, value: Any) -> Tensor:
        # Rank 0: onnxruntime fuses no integer kernel around scales of shape (1,).
        key = value.dtype.str.encode() + value.tobytes()
        if key not in self.known:
            self.known[key] = constant(self.model, value)
        return self.known[key]


def _quantize_tensor(
    model: Model, grid: Grid, affine: Affine, members: set[int], constants: _Constants
) -> None:
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
    parameters = constants.pair(affine)
    codes = add_node(model, graph, "QuantizeLinear", [source, *parameters])
    add_node(model, graph, "DequantizeLinear", [codes, *parameters], [target])
    for node, k in readers:
        node.inputs[k] = target


def _is_data(node: Any, index: int) -> bool:
    return index == 0 or node.op not in ("Conv", "Gemm", "MatMul", "Resize", "Reshape")


def _write_layer(
    model: Model, layer: Layer, weight: WeightGrid, source: Affine, rank: int | None
) -> None:
    if layer.kind == "MatMul" and rank is not None:
        _keep_from_gemm(model, layer, rank)
    bias = input_at(layer.node, 2) if layer.node.op in ("Conv", "Gemm") else None
    scales = weight.scales.astype(np.float32)
    axis = 0 if layer.kind == "Conv" or layer.transposed else 1
    values = weight.values
    if bias is not None:
        floats = np.broadcast_to(values_of(bias).astype(np.float64).reshape(-1), scales.shape)
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


def _keep_from_gemm(model: Model, layer: Layer, rank: int) -> None:
    """Keep onnxruntime from turning MatMul and Add into a Gemm that runs in float.

    Behind a MatMul of rank 2 the two become an integer Gemm; elsewhere a bias of full rank is
    not fused.
    """
    outputs = output_names(model)
    bias, add = layer.bias(outputs), sole_reader(layer.output, outputs)
    if bias is None or add is None:
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
