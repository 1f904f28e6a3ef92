"""Refits of layers that lose inputs: what stays makes up for what goes."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxslim_tk.graph.layers import Layer
from onnxslim_tk.kernels.least_squares import mean_shift, refit_columns, relative_error
from onnxslim_tk.measure.observe import Moments

Array = NDArray[Any]
Floats = NDArray[np.float64]
Indices = NDArray[np.int64]
# Moments are summed in float32: below this share of all energy a direction is rounding noise,
# and where the mean is large, it can be negative once the mean is taken off.
_ROUNDING = 1e-6


@dataclass(frozen=True, slots=True)
class Refit:
    """A weight of the layer's shape that is zero for the inputs that go.

    ``shift`` is what the bias gains, one number per output, or None without samples; ``error``
    the squared change of the output, or without samples of the weight, over its square.
    """

    weight: Array
    shift: Floats | None
    error: float


def columns_of(kept: Indices, count: int, inputs: int) -> Indices:
    """Columns of a weight matrix that read the channels ``kept`` of ``count``."""
    block = inputs // count
    return (kept[:, None] * block + np.arange(block)).ravel()


def refit_inputs(layer: Layer, kept: Indices, count: int, moments: Moments | None) -> Refit:
    """Weights of an ungrouped ``layer`` that reads only channels ``kept`` of ``count``.

    Least squares against the layer's own outputs (He et al., 2017); the intercept lets the mean
    stay without spending weights on it. Without samples the rest of the weight is as it was.
    """
    matrix = layer.matrix()[0]
    columns = columns_of(kept, count, matrix.shape[1])
    replaced = np.zeros_like(matrix)
    second = None if moments is None or moments.second is None else moments.second[0]
    if moments is None or second is None:
        replaced[:, columns] = matrix[:, columns]
        return Refit(_stored(layer, replaced), None, relative_error(matrix, replaced))
    mean = moments.mean[0]
    spread = centred(moments)
    floor = _ROUNDING * np.trace(second) * np.eye(len(second))
    replaced[:, columns] = refit_columns(matrix, columns, spread + floor)
    change = matrix - replaced
    noise = float(np.vdot(change @ spread, change))
    power = float(np.vdot(matrix @ second, matrix))
    error = max(noise, 0.0) / power if power > 0 else 0.0
    shift = mean_shift(matrix, replaced, mean)
    return Refit(_stored(layer, replaced), shift, error)


def centred(moments: Moments) -> Floats:
    """The covariance ``(inputs, inputs)`` about the mean, of an ungrouped layer."""
    if moments.second is None:
        raise ValueError("centred: needs second moments")
    mean = moments.mean[0]
    return np.asarray(moments.second[0] - np.outer(mean, mean), np.float64)


def channel_energies(layer: Layer, count: int, moments: Moments | None) -> Floats:
    """Share of an ungrouped layer's output variance that each of ``count`` input channels brings.

    As if channels were not correlated; without samples, as if all inputs were white.
    """
    matrix = layer.matrix()[0]
    block = matrix.shape[1] // count
    weights = matrix.reshape(len(matrix), count, block)
    if moments is None or moments.second is None:
        energies = np.einsum("ncb,ncb->c", weights, weights)
    else:
        parts = centred(moments).reshape(count, block, count, block)
        own = np.einsum("cbce->cbe", parts)
        energies = np.einsum("cnb,cnb->c", weights.transpose(1, 0, 2) @ own, weights.swapaxes(0, 1))
    total = energies.sum()
    return np.asarray(np.maximum(energies, 0.0) / total if total > 0 else energies, np.float64)


def _stored(layer: Layer, matrix: Floats) -> Array:
    return layer.from_matrix(matrix[None]).astype(np.float32)
