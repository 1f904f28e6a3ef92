"""A convolution as a depthwise one and a 1 x 1: each channel is filtered, then all are mixed."""

from math import prod
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve

from onnxslim_tk.graph.layers import Layer
from onnxslim_tk.kernels.least_squares import damped
from onnxslim_tk.kernels.lowrank import factorize
from onnxslim_tk.recover.chain import Parts, Step
from onnxslim_tk.recover.factors import DAMPING, TINY_DAMPING, Form, described

Floats = NDArray[np.float64]


def _obstacle(layer: Layer) -> str:
    if layer.kind == "Conv" and prod(layer.shape[2:]) > 1 and layer.shape[1] > 1:
        return ""
    return f"{described(layer)} has no kernel to split from its channels"


def _rank(layer: Layer, count: float, step: int) -> int:
    """How many filters each channel may have."""
    rows, channels, *kernel = layer.shape
    most = min(prod(kernel) - 1, rows)
    return min(int(count / (channels * (prod(kernel) + rows)) + 1e-9), most)


def _split(layer: Layer, rank: int, covariance: Floats | None) -> Parts:
    """Filters that are best for each channel alone, mixed in the way that is best for all."""
    rows, channels = layer.shape[:2]
    weight = layer.weight.reshape(rows, channels, -1).astype(np.float64)
    taps = weight.shape[2]
    filters = np.zeros((channels, rank, taps))
    mixed = np.zeros((rows, channels, rank))
    for k in range(channels):
        own = slice(k * taps, (k + 1) * taps)
        known = None if covariance is None else covariance[own, own]
        mixed[:, k], filters[k] = factorize(weight[:, k], rank, known, DAMPING)
    if covariance is not None:
        normal = damped(covariance, DAMPING)
        cross = _filtered(normal, filters)
        gram = damped(_filtered(np.ascontiguousarray(cross.T), filters), TINY_DAMPING)
        factor = cho_factor(gram, lower=True, check_finite=False)
        target = (weight.reshape(rows, -1) @ cross).T
        mixed = cho_solve(factor, target, check_finite=False).T
    return filters.reshape(channels * rank, taps), mixed.reshape(rows, -1)


def _filtered(matrix: Floats, filters: Floats) -> Floats:
    """``matrix`` with each channel's taps of its columns put through the channel's filters."""
    channels, _, taps = filters.shape
    by_channel = matrix.reshape(len(matrix), channels, taps)
    found = np.einsum("nct,crt->ncr", by_channel, filters)
    return np.asarray(found.reshape(len(matrix), -1), np.float64)


def _product(layer: Layer, parts: Parts) -> Floats:
    channels = layer.shape[1]
    filters = parts[0].reshape(channels, -1, parts[0].shape[-1])
    mixed = parts[1].reshape(len(parts[1]), channels, -1)
    whole = np.einsum("ncr,crt->nct", mixed, filters)
    return np.asarray(whole.reshape(len(mixed), -1), np.float64)


def _steps(layer: Layer, rank: int) -> list[Step]:
    rows, channels, *kernel = layer.shape
    own = dict(layer.node.attrs) | {"kernel_shape": list(kernel), "group": channels}
    ones = [1] * len(kernel)
    return [
        Step((channels * rank, 1, *kernel), own),
        Step((rows, channels * rank, *ones), {"kernel_shape": ones}),
    ]


SEPARABLE: Final = Form(_obstacle, _rank, _split, _product, _steps)
"""A depthwise k x k, then 1 x 1 (Howard et al., 2017); rank counts the filters of a channel."""
