"""Bias shifts: a changed weight keeps the mean of what its layer puts out."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxslim_tk.graph.edit import input_at
from onnxslim_tk.graph.layers import Layer
from onnxslim_tk.graph.model import Model
from onnxslim_tk.measure.moments import Moments
from onnxslim_tk.measure.observe import Statistics

Array = NDArray[Any]
# A new bias tensor beside its values; behind a MatMul also the Add that brings it.
_TENSOR_BYTES = 14
_ADD_BYTES = 22


def moments_of(layer: Layer, statistics: Statistics | None) -> Moments | None:
    """What samples show about the rows that ``layer``'s weight multiplies, if they do."""
    return None if statistics is None else statistics.moments.get(layer.id)


def shift_means(
    model: Model,
    layer: Layer,
    before: Array,
    after: Array,
    statistics: Statistics | None,
    outputs: set[str],
) -> bool:
    """Add ``(W - W') E[x]`` to the bias of ``layer``, so that its mean output stays.

    ``before`` and ``after`` are the weight as ``(groups, rows, inputs)``, ``outputs`` the names
    that graphs give out. False where the mean is not known or the bias has no place (Nagel et
    al., 2019).
    """
    moments = moments_of(layer, statistics)
    if moments is None:
        return False
    return shift_outputs(
        model, layer, np.einsum("gri,gi->gr", before - after, moments.mean), outputs
    )


def shift_outputs(model: Model, layer: Layer, rows: Array, outputs: set[str]) -> bool:
    """Add ``rows``, one number per row of the weight ``(groups, rows)``, to the layer's bias."""
    shift = layer.per_channel(rows)
    # A lossless change needs no bias where there was none.
    return bool(np.any(shift)) and layer.shift_bias(model, shift, outputs)


def keeps_mean(layer: Layer, outputs: set[str]) -> bool:
    """Whether :func:`shift_means` takes off every row's mean error, if samples show the mean.

    The rows of a ConvTranspose share one bias.
    """
    if layer.kind in ("Conv", "Gemm"):
        return input_at(layer.node, 2) is None or layer.bias(outputs) is not None
    return layer.kind == "MatMul"


def shift_bytes(layer: Layer, statistics: Statistics | None, outputs: set[str]) -> int:
    """Bytes that :func:`shift_means` adds to the file: 0 where a bias is there, or has no place."""
    if layer.is_recurrent or moments_of(layer, statistics) is None:
        return 0
    if layer.bias(outputs) is not None:
        return 0
    return 4 * layer.channels + _TENSOR_BYTES + (_ADD_BYTES if layer.kind == "MatMul" else 0)
