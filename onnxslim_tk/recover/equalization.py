"""Equalized channels: their factors, how a model gets them, and whether int8 gains by it."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from onnxslim_tk.graph.edit import add_node, constant, output_names
from onnxslim_tk.graph.layers import Layer, layers
from onnxslim_tk.graph.model import Model
from onnxslim_tk.graph.regions import find_regions
from onnxslim_tk.graph.scale_flow import ScaleGroup
from onnxslim_tk.graph.scaling import rescaled
from onnxslim_tk.kernels.equalization import best_factors
from onnxslim_tk.kernels.rounding import symmetric_scales, to_grid
from onnxslim_tk.measure.observe import Channels, observe
from onnxslim_tk.measure.runtime import Feed
from onnxslim_tk.recover.grid_probe import GridProbe
from onnxslim_tk.recover.ranges import choose_grids

Floats = NDArray[np.float64]


def group_factors(
    group: ScaleGroup, channels: Mapping[str, Channels]
) -> tuple[Floats, float] | None:
    """Factors of ``group`` and the share of int8's noise that they leave in its readers.

    ``channels`` are by tensor name; None where a reader's input was not seen, or only zeros.
    """
    blocks = {id(edit.node): edit.block for edit in group.edits if edit.power < 0}
    peaks, squares, weights = np.zeros(group.count), np.zeros(group.count), []
    for layer in group.readers:
        seen = channels.get(layer.input.name)
        size = group.count * blocks[id(layer.node)]
        if seen is None or len(seen.peak) != size or not seen.peak.max() > 0:
            return None
        # Tensors of one group have grids of their own, so that only the spread counts.
        top = seen.peak.max()
        peaks = np.maximum(peaks, seen.peak.reshape(group.count, -1).max(axis=1) / top)
        square = seen.square.reshape(group.count, -1).mean(axis=1) / top**2
        squares = np.maximum(squares, square)
        weights.append(_by_channel(layer, group.count))
    return best_factors(peaks, squares, weights, group.apart)


def _by_channel(layer: Layer, count: int) -> Floats:
    """The layer's weight as a matrix of rows and ``count`` columns."""
    matrix = layer.matrix()
    if layer.groups > 1:
        return np.asarray(np.linalg.norm(matrix[:, 0], axis=1)[None], np.float64)
    columns = matrix[0].reshape(len(matrix[0]), count, -1)
    return np.asarray(np.linalg.norm(columns, axis=2), np.float64)


def write_factors(model: Model, group: ScaleGroup, factors: Floats) -> None:
    """Multiply the channels of ``group``; the function of the model stays."""
    for edit in group.edits:
        edit.node.inputs[edit.slot] = constant(model, rescaled(edit, factors))
    if group.restored:
        tensor = group.restored[0][1]
        back = constant(model, (1 / factors).astype(np.float32))
        same = add_node(model, model.graph, "Mul", [tensor, back])
        for node, _ in group.restored:
            for slot, value in enumerate(node.inputs):
                if value is tensor:
                    node.inputs[slot] = same


def integer_error(
    model: Model, reference: Model, calibrate: Sequence[Feed], judge: Sequence[Feed]
) -> float:
    """Relative squared error on ``judge`` that int8 makes of ``model``, in float arithmetic.

    Every layer that can runs in int8, with the ranges that ``calibrate`` shows; ``reference`` is
    what its outputs are held against. Raises SessionError where a model doesn't run.
    """
    twin = model.copy()
    statistics = observe(twin, calibrate, frozenset({"range"}), 0)
    found = [
        layer
        for layer in layers(twin)
        if layer.kind in ("Conv", "Gemm", "MatMul")
        and not layer.path
        and not layer.obstacle(0)
        and {layer.input.name, layer.output.name} <= statistics.ranges.keys()
    ]
    nodes = [layer.node for layer in found]
    regions = find_regions(twin.graph, nodes, output_names(twin), statistics.extents)
    grids = choose_grids(twin, regions, statistics, {}, ())
    for layer in found:
        _round_weight(twin, layer)
    probe = GridProbe(twin, regions, judge, reference)
    by_head = {grid.like: grids[name] for name, grid in regions.grids.items()}
    return float(probe.errors(by_head).mean())


def _round_weight(model: Model, layer: Layer) -> None:
    weight = np.moveaxis(layer.weight, layer.channel_axis, 0)
    flat = weight.reshape(len(weight), -1).astype(np.float64)
    scales = symmetric_scales(flat)
    shape = [-1] + [1] * (weight.ndim - 1)
    rounded = to_grid(flat, scales).reshape(weight.shape) * scales.reshape(shape)
    layer.set_dense(model, np.moveaxis(rounded, 0, layer.channel_axis))
