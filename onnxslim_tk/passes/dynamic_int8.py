"""Dynamic int8: matrix products in integers whose input ranges are found anew in every run."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from onnxslim_tk.errors import RecipeError
from onnxslim_tk.graph.edit import (
    add_node,
    constant,
    input_at,
    output_names,
    remove_node,
    sole_reader,
    variable,
)
from onnxslim_tk.graph.layers import Layer, layers
from onnxslim_tk.graph.model import Model, Tensor
from onnxslim_tk.graph.opset import obstacle_to, raise_opset
from onnxslim_tk.graph.qdq import gather_rows
from onnxslim_tk.graph.sharing import by_weight, read_alike
from onnxslim_tk.graph.weight_grid import WeightGrid
from onnxslim_tk.kernels.least_squares import relative_error
from onnxslim_tk.kernels.ranges import expected_error
from onnxslim_tk.packing import packed_bytes
from onnxslim_tk.plan.proposal import Context, Observable, Proposal, Refusal
from onnxslim_tk.plan.readers import offered
from onnxslim_tk.plan.work import layer_work
from onnxslim_tk.recover.weight_rounding import rounded_grid

Array = NDArray[Any]
_KINDS: Final = ("Gemm", "MatMul")
_OPSET: Final = 11
# Bytes of the nodes that take the place of one layer.
_OVERHEAD: Final = 150
# Squared step of a uint8 grid over ten standard deviations, over twelve.
_USUAL_NOISE: Final = (10.0 / 255.0) ** 2 / 12.0


@dataclass(frozen=True, slots=True)
class DynamicInt8:
    """Matrix products with int8 weights and inputs quantized to uint8 by their range in each run.

    Needs no samples; ``feedback`` lets those that are there steer the rounding of weights (GPTQ,
    Frantar et al., 2022). Standard operators that onnxruntime fuses into one kernel; convolutions
    would be slower so. Layers with fewer than ``least_macs`` multiply-accumulates a run would not
    gain.
    """

    name: ClassVar[str] = "dynamic_int8"
    main: ClassVar[str] = "least_macs"
    observes: ClassVar[frozenset[Observable]] = frozenset({"range", "covariance"})

    least_macs: int = 65536
    feedback: bool = True

    def __post_init__(self) -> None:
        if self.least_macs < 0:
            raise RecipeError(f"dynamic_int8: least macs must be 0 or more, got {self.least_macs}")

    def propose(self, model: Model, context: Context) -> Iterator[Proposal | Refusal]:
        """One row for each weight that Gemm or MatMul read."""
        too_old = obstacle_to(model, _OPSET)

        def look(
            tuned: DynamicInt8, sharers: Sequence[Layer], parted: bool
        ) -> tuple[list[Proposal], str]:
            shared = parted or not read_alike(sharers)
            reason = tuned._refusal(sharers, context, shared) or too_old
            if not reason and context.statistics is None and _came_scaled(model, sharers[0]):
                reason = "quantized already, and no samples tell what rounding its inputs costs"
            row = None if reason else _row(self.name, sharers, context)
            return [] if row is None else [row], reason or "int8 would not make it smaller"

        yield from offered(self, model, context, look)

    def apply(self, model: Model, chosen: Sequence[Proposal], context: Context) -> None:
        """Write the chosen layers; those that read one tensor share its quantization."""
        if not chosen:
            return
        raise_opset(model, _OPSET)
        wanted = {target for row in chosen for target in row.targets}
        quantized: dict[tuple[str, int], list[Tensor]] = {}
        for sharers in by_weight(list(layers(model))):
            if sharers[0].id not in wanted:
                continue
            by_row = any(layer.kind == "Gather" for layer in sharers)
            tuned = context.tuned(self, sharers[0].names) or self
            # A weight that several layers read stays one.
            steered = tuned.feedback and len(sharers) == 1
            for layer in sharers:
                grid = rounded_grid(layer, context.statistics if steered else None, context.grids)
                if layer.kind == "Gather":
                    gather_rows(model, layer, grid)
                    continue
                key = layer.path, id(layer.input)
                if key not in quantized:
                    quantized[key] = _quantize(model, layer)
                _write(model, layer, grid, quantized[key], by_row)

    def _refusal(self, sharers: Sequence[Layer], context: Context, shared: bool) -> str:
        products = [layer for layer in sharers if layer.kind in _KINDS]
        if not products or any(layer.kind not in (*_KINDS, "Gather") for layer in sharers):
            return "only Gemm and MatMul gain from ranges found in each run"
        layer = products[0]
        work = min(layer.macs(context.shapes) or layer.size for layer in products)
        if work < self.least_macs:
            return f"fewer than {self.least_macs} multiply-accumulates"
        times = _times(products, context)
        floating, dynamic = (
            (sum(column) for column in zip(*times, strict=True)) if times else (1, 0)
        )
        if dynamic >= floating:
            return f"would run slower in integers: {dynamic:.1f} us against {floating:.1f} us"
        if not layer.is_dense and (layer.stored.dtype != np.int8 or not layer.is_multiplied):
            return "quantized already"
        if layer.is_half:
            return "it computes in float16"
        if not np.isfinite(layer.weight).all():
            return "the weight holds values that are not finite"
        if shared:
            return "the weight is shared with another node"
        known = [layer.input.name for layer in products if layer.input.name in context.shapes]
        ranges = None if context.statistics is None else context.statistics.ranges
        if ranges is not None and any(name not in ranges for name in known):
            return "what it reads was not finite in a run"
        return ""


def _came_scaled(model: Model, layer: Layer) -> bool:
    """Whether the file itself holds the weight as values and scale; what passes write has no id."""
    slot = layer.node.inputs[layer.slot]
    return not layer.is_dense and layer.path + slot.name in model.origins


def _row(method: str, sharers: Sequence[Layer], context: Context) -> Proposal | None:
    """The row for all readers of one weight, or None where it saves nothing."""
    layer = sharers[0]
    grid = context.grids.of(layer)
    saved = packed_bytes(layer.weight) if layer.is_dense else packed_bytes(layer.stored.values)
    saved -= packed_bytes(grid.values) + len(sharers) * _OVERHEAD
    saved -= packed_bytes(grid.scales) if layer.is_dense else 0
    saved_time = sum(floating - dynamic for floating, dynamic in _times(sharers, context))
    if saved <= 0 and saved_time <= 0:
        return None
    error = relative_error(
        layer.by_channel(layer.weight), layer.by_channel(grid.dense(layer))
    ) + max(_noise(layer, context) for layer in sharers)
    ids = tuple(layer.id for layer in sharers)
    return Proposal(ids, method, "dynamic", bytes_saved=saved, cost_saved=saved_time, error=error)


def _times(sharers: Sequence[Layer], context: Context) -> list[tuple[float, float]]:
    """Microseconds of products in float and with ranges found in each run, where known."""
    works = [layer_work(layer, context.shapes) for layer in sharers if layer.kind in _KINDS]
    target = context.target
    return [(target.float_time(w), target.dynamic_time(w)) for w in works if w is not None]


def _noise(layer: Layer, context: Context) -> float:
    """Expected relative squared error of the layer's input on a grid over its range."""
    if layer.kind == "Gather":
        return 0.0
    ranges = {} if context.statistics is None else context.statistics.ranges
    histogram = ranges.get(layer.input.name)
    if layer.path or histogram is None:
        return _USUAL_NOISE
    centres = (histogram.edges[1:] + histogram.edges[:-1]) / 2
    energy = float((histogram.counts * centres**2).sum() / histogram.total)
    return expected_error(histogram, histogram.low, histogram.high) / max(energy, 1e-30)


def _quantize(model: Model, layer: Layer) -> list[Tensor]:
    """Codes, scale and zero point of what the layer reads."""
    parts = [variable(model) for _ in range(3)]
    add_node(model, layer.graph, "DynamicQuantizeLinear", [layer.input], parts)
    return parts


def _write(
    model: Model, layer: Layer, grid: WeightGrid, source: Sequence[Tensor], by_row: bool
) -> None:
    """Put the integer product and its scales in the place of a layer's node.

    ``by_row`` keeps a transposed weight as it lies, for an embedding that reads the same table.
    """
    graph, output, transposed = layer.graph, layer.output, layer.transposed
    outputs = output_names(model)
    add = sole_reader(output, outputs) if layer.kind == "MatMul" else None
    if add is not None and layer.bias(outputs) is not None and add.inputs[0] is not output:
        # Runtimes before 1.24 fuse a bias only where it comes second.
        add.inputs = add.inputs[::-1]
    bias = input_at(layer.node, 2) if layer.kind == "Gemm" else None
    remove_node(graph, layer.node)
    codes, scale, zero = source
    if transposed and by_row:
        stored = constant(model, grid.values)
        weight = add_node(model, graph, "Transpose", [stored], attrs={"perm": [1, 0]})
    else:
        weight = constant(model, grid.values.T if transposed else grid.values)
    product = add_node(model, graph, "MatMulInteger", [codes, weight, zero])
    scales = add_node(model, graph, "Mul", [scale, constant(model, grid.scales)])
    wide = add_node(model, graph, "Cast", [product], attrs={"to": 1})
    if bias is None:
        add_node(model, graph, "Mul", [wide, scales], [output])
    else:
        scaled = add_node(model, graph, "Mul", [wide, scales])
        add_node(model, graph, "Add", [scaled, bias], [output])
