"""Weights as int8 values and one scale per channel."""

import weakref
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxslim_tk.graph.edit import values_of
from onnxslim_tk.graph.layers import Layer
from onnxslim_tk.kernels.codebook import storable_scales
from onnxslim_tk.kernels.rounding import WEIGHT_BITS, symmetric_scales, to_grid

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class WeightGrid:
    """A weight as int8 ``values`` in its own shape and one float32 scale per channel."""

    values: Array
    scales: Array

    def dense(self, layer: Layer) -> Array:
        """The float weight that the values stand for."""
        return np.multiply(self.values, layer.along(self.scales), dtype=np.float32)


class WeightGrids:
    """Grids of weights; the scales found for one are kept as long as the weight is there.

    Proposals of several methods and the one that is carried out ask for the same.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[int, int, tuple[int, ...]], tuple[weakref.ref[Array], Array]] = {}

    def __len__(self) -> int:
        return len(self._known)

    def of(self, layer: Layer, bits: int = WEIGHT_BITS) -> WeightGrid:
        """Int8 values and scales per output channel; values that lie on a grid already stay."""
        if layer.scale is not None:
            values = np.asarray(layer.stored.values)
            scales = np.broadcast_to(layer.scale.astype(np.float32), (prod(layer.scale_shape),))
            return WeightGrid(values, scales.copy())
        flat = layer.by_channel(layer.weight)
        stored = values_of(layer.stored)
        key = (id(stored), bits, layer.scale_shape)
        held, scales = self._known.get(key, (None, np.zeros(0, np.float32)))
        if held is None or held() is not stored:
            scales = storable_scales(symmetric_scales(flat, bits))
            known = self._known
            known[key] = weakref.ref(stored, lambda _: known.pop(key, None)), scales
        values = to_grid(flat, scales.astype(np.float64), bits)
        return WeightGrid(layer.from_channels(values), scales.copy())
