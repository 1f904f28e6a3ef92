"""Static int8 quantization: uint8 activations and int8 weights between Q and DQ nodes."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from onnxslim_tk.errors import RecipeError
from onnxslim_tk.graph.edit import input_at, output_names, values_of
from onnxslim_tk.graph.layers import Layer, layers
from onnxslim_tk.graph.model import Model
from onnxslim_tk.graph.opset import obstacle_to, raise_opset
from onnxslim_tk.graph.qdq import gather_rows, write_regions
from onnxslim_tk.graph.regions import find_regions
from onnxslim_tk.graph.sharing import read_alike
from onnxslim_tk.graph.weight_grid import WeightGrid
from onnxslim_tk.kernels.least_squares import relative_error
from onnxslim_tk.kernels.ranges import METHODS, expected_error, mse_range
from onnxslim_tk.kernels.rounding import WEIGHT_BITS
from onnxslim_tk.measure.observe import Statistics
from onnxslim_tk.packing import packed_bytes
from onnxslim_tk.plan.placement import Placement, place
from onnxslim_tk.plan.proposal import Context, Observable, Proposal, Refusal
from onnxslim_tk.plan.readers import offered
from onnxslim_tk.plan.work import layer_work
from onnxslim_tk.recover.bias import keeps_mean, shift_means
from onnxslim_tk.recover.measured_bias import FloatMeans
from onnxslim_tk.recover.ranges import Ranges, choose_grids
from onnxslim_tk.recover.weight_rounding import rounded_grid

Array = NDArray[Any]
_ALREADY = "quantized already"
_SHARED = "the weight is shared with another node"
_OPSET = 13
_SMALLEST = 64
_FEWEST_BITS, _MOST_BITS = 2, 8
# Multiply-accumulates from which a Pad of the input costs less than odd channels do.
_WORTH_WIDENING = 100_000
# Bytes of the nodes and small constants that a quantized layer brings along.
_INTEGER_OVERHEAD = 330
# Microseconds that keep a row that saves no time by itself among those that can be given up.
_LEAST_SAVED = 1e-3
_FLOAT_OVERHEAD = 120


@dataclass(frozen=True, slots=True)
class Quantize:
    """Int8 by layer: in integers where samples show the ranges, else int8 weights run in float.

    ``activations`` false keeps all arithmetic in float; ``ranges`` is the method that picks the
    grids of activations, ``auto`` the one that suits the operator, or for the tensors that matter
    most the one that disturbs the model's outputs least; ``weight_bits`` 8 is for CPUs with VNNI
    alone: others saturate sums of 8-bit products (Jacob et al., 2018; Krishnamoorthi, 2018).
    ``bias_correction`` keeps the mean outputs of layers: as expected from the means of their
    inputs, and then as measured in the quantized model, where that brings its outputs closer.
    ``feedback`` rounds weights so that their errors make up for each other on the samples (GPTQ,
    Frantar et al., 2022); without, each goes to its nearest value.
    ``only_faster`` keeps in float what the target's table says would run slower in integers, with
    the changes of numbers around it; false is for a machine that the table does not describe.
    """

    name: ClassVar[str] = "quantize"
    main: ClassVar[str] = "activations"
    observes: ClassVar[frozenset[Observable]] = frozenset({"mean", "covariance", "range"})

    activations: bool = True
    ranges: Ranges = "auto"
    weight_bits: int = WEIGHT_BITS
    bias_correction: Literal["none", "expected", "measured"] = "measured"
    feedback: bool = True
    only_faster: bool = True

    def __post_init__(self) -> None:
        if not _FEWEST_BITS <= self.weight_bits <= _MOST_BITS:
            raise RecipeError(f"quantize: weight bits must be 2 to 8, got {self.weight_bits}")
        if self.ranges not in ("auto", *METHODS):
            known = ", ".join(METHODS)
            raise RecipeError(f"quantize: ranges must be auto, {known}, got {self.ranges!r}")

    def propose(self, model: Model, context: Context) -> Iterator[Proposal | Refusal]:
        """One row a layer: ``integer``, then ``float`` (int8 weights, float arithmetic)."""
        too_old = obstacle_to(model, _OPSET)

        def look(
            tuned: Quantize, sharers: Sequence[Layer], parted: bool
        ) -> tuple[list[Proposal], str]:
            reason = _SHARED if parted else _refusal(sharers) or too_old
            already = "int8 would not make it smaller" if sharers[0].is_dense else _ALREADY
            return [] if reason else list(_rows(tuned, sharers, context)), reason or already

        found = list(offered(self, model, context, look))
        placed = _placed(found, model, context)
        for row in found:
            if isinstance(row, Refusal) or row.setting != "integer":
                yield row
            elif self.only_faster and row.targets[0] in placed.slower:
                for target in row.targets:
                    yield Refusal(target, self.name, str(placed.slower[target]))
            else:
                saved = sum(placed.saved.get(target, 0.0) for target in row.targets)
                yield replace(row, cost_saved=max(saved, _LEAST_SAVED))

    def apply(self, model: Model, chosen: Sequence[Proposal], context: Context) -> None:
        """Write the chosen layers; integer ones and what lies between them as regions."""
        if not chosen:
            return
        raise_opset(model, _OPSET)
        rows = {target: row for row in chosen for target in row.targets}
        means = self._float_means(model, rows, context)
        integer: list[tuple[Layer, WeightGrid]] = []
        outputs = output_names(model)
        for layer in list(layers(model)):
            row = rows.get(layer.id)
            if row is None:
                continue
            tuned = context.tuned(self, layer.names) or self
            if layer.kind == "Gather":
                gather_rows(model, layer, context.grids.of(layer, tuned.weight_bits))
                continue
            if row.setting == "integer" and not _can_run_in_integers(layer, context):
                raise RecipeError(
                    f"quantize: {layer.id!r} cannot run in integers without samples that show the "
                    "ranges of what it reads and gives"
                )
            corrects = tuned.bias_correction != "none" and layer.is_dense
            centred = corrects and keeps_mean(layer, outputs)
            grid = tuned._grid(layer, context, centred, len(row.targets) > 1)
            if corrects and context.statistics is not None:
                after = layer.to_matrix(grid.dense(layer)).astype(np.float64)
                shift_means(model, layer, layer.matrix(), after, context.statistics, outputs)
            if row.setting == "integer":
                integer.append((layer, grid))
            elif layer.is_dense:
                layer.set_scaled(model, grid.values, grid.scales)
        if integer and context.statistics is not None:
            shifts = self._write_integer(model, integer, context)
            if means is not None:
                nodes = {id(layer.node): layer.node for layer, _ in integer}
                moved = [(node, shifts.get(key, 0.0)) for key, node in nodes.items()]
                means.correct(model, moved, context.feeds)

    def _grid(self, layer: Layer, context: Context, centred: bool, shared: bool) -> WeightGrid:
        """The weight in int8; one that several layers read stays one."""
        statistics = context.statistics if self.feedback and not shared else None
        return rounded_grid(layer, statistics, context.grids, centred, self.weight_bits)

    def _float_means(
        self, model: Model, rows: Mapping[str, Proposal], context: Context
    ) -> FloatMeans | None:
        """What convolutions to be quantized put out on average, if biases are to be measured."""
        if not context.feeds:
            return None
        nodes = [
            layer.node
            for layer in layers(model)
            if layer.kind == "Conv"
            and layer.id in rows
            and rows[layer.id].setting == "integer"
            and (context.tuned(self, layer.names) or self).bias_correction == "measured"
        ]
        return FloatMeans(model, nodes, context.feeds, context.reference) if nodes else None

    def _write_integer(
        self, model: Model, integer: list[tuple[Layer, WeightGrid]], context: Context
    ) -> dict[int, float | Array]:
        statistics = context.statistics or Statistics()
        by_input = {
            layer.input.name: (context.tuned(self, layer.names) or self).ranges
            for layer, _ in integer
        }
        outputs = output_names(model)
        nodes = [layer.node for layer, _ in integer]
        regions = find_regions(model.graph, nodes, outputs, statistics.extents)
        methods = {name: by_input.get(name, self.ranges) for name in regions.grids}
        affine = choose_grids(model, regions, statistics, methods, context.feeds)
        ranks = {name: len(shape) for name, shape in statistics.shapes.items()}
        extra = {}
        for layer, _ in integer:
            more = _missing_channels(layer, context)
            if more:
                extra[layer.id] = more
        return write_regions(model, regions, affine, integer, ranks, extra)


def _missing_channels(layer: Layer, context: Context) -> int:
    """How many channels a convolution lacks for its fast kernel, where that is worth a Pad."""
    target, work = context.target, layer_work(layer, context.shapes)
    if layer.kind != "Conv" or work is None:
        return 0
    if work.is_depthwise:
        worth = target.widened_time(work) < target.odd_time(work)
        return -layer.channels % target.channel_step if worth else 0
    worth = layer.groups == 1 and work.macs >= _WORTH_WIDENING
    return -layer.shape[1] % target.input_step if worth else 0


def _refusal(sharers: Sequence[Layer]) -> str:
    """Why the weight that ``sharers`` read must stay as it is; empty where it need not."""
    layer = sharers[0]
    if layer.size < _SMALLEST:
        return f"fewer than {_SMALLEST} weights"
    if not layer.is_dense and layer.node.op != "Gather" and not layer.is_multiplied:
        return _ALREADY
    if not layer.is_dense and layer.stored.dtype != np.int8:
        return _ALREADY
    if layer.zero_point is not None and np.any(layer.zero_point):
        return f"{_ALREADY}, with a zero point"
    if not np.isfinite(layer.weight).all():
        return "the weight holds values that are not finite"
    return "" if read_alike(sharers) else _SHARED


def _rows(tuned: Quantize, sharers: Sequence[Layer], context: Context) -> Iterator[Proposal]:
    """Rows for the layers that read one weight: mostly one, else all of them at once."""
    layer, ids = sharers[0], tuple(layer.id for layer in sharers)
    grid = context.grids.of(layer, tuned.weight_bits)
    before = packed_bytes(layer.weight) if layer.is_dense else packed_bytes(grid.values)
    if not layer.is_dense:
        before += packed_bytes(grid.scales) + _FLOAT_OVERHEAD
    saved = before - packed_bytes(grid.values) - packed_bytes(grid.scales)
    error = relative_error(_flat(layer.weight), _flat(grid.dense(layer)))
    tables = sum(layer.kind == "Gather" for layer in sharers)
    saved -= 2 * tables * _FLOAT_OVERHEAD
    readers = [layer for layer in sharers if layer.kind != "Gather"]
    if not readers:
        yield Proposal(ids, tuned.name, "rows", bytes_saved=saved, error=error)
        return
    if tuned.activations and all(_can_run_in_integers(layer, context) for layer in readers):
        yield Proposal(
            ids,
            tuned.name,
            "integer",
            bytes_saved=saved - sum(_INTEGER_OVERHEAD + 4 * layer.channels for layer in readers),
            error=error + max(_input_noise(layer, context.statistics) for layer in readers),
        )
    saved -= len(readers) * _FLOAT_OVERHEAD
    if layer.is_dense and saved > 0:
        yield Proposal(ids, tuned.name, "float", bytes_saved=saved, error=error)


def _placed(rows: Sequence[Proposal | Refusal], model: Model, context: Context) -> Placement:
    """Which of the layers that can run in integers gain by it."""
    statistics = context.statistics or Statistics()
    by_id = {layer.id: layer for layer in layers(model)}
    groups = [
        [by_id[target] for target in row.targets if by_id[target].kind != "Gather"]
        for row in rows
        if isinstance(row, Proposal) and row.setting == "integer"
    ]
    extents, shapes = statistics.extents, context.shapes
    return place(model.graph, groups, output_names(model), extents, shapes, context.target)


def _can_run_in_integers(layer: Layer, context: Context) -> bool:
    if context.statistics is None or layer.path or layer.kind not in ("Conv", "Gemm", "MatMul"):
        return False
    if layer.is_turned:
        return False
    # What was not finite in a run has no range; a convolution's output needs one as well.
    names = [layer.input.name, *([layer.output.name] if layer.kind == "Conv" else [])]
    # What never moved, a state that starts as zeros, says nothing of what it will be.
    extents = [context.statistics.extents.get(name, (0.0, 0.0)) for name in names]
    if any(low == high for low, high in extents):
        return False
    if layer.kind == "MatMul" or input_at(layer.node, 2) is None:
        return True
    bias = layer.bias(set())
    return bias is not None and bool(np.isfinite(values_of(bias)).all())


def _input_noise(layer: Layer, statistics: Statistics | None) -> float:
    """Expected relative squared error of the layer's input on its grid."""
    if statistics is None:
        return 0.0
    histogram = statistics.ranges[layer.input.name]
    low, high = mse_range(histogram)
    centres = (histogram.edges[1:] + histogram.edges[:-1]) / 2
    energy = float((histogram.counts * centres**2).sum() / histogram.total)
    return expected_error(histogram, low, high) / max(energy, 1e-30)


def _flat(weight: Array) -> Array:
    return weight.reshape(weight.shape[0], -1)
