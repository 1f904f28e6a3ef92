"""Factors of a convolution or a matrix: how a weight is split in them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve

from onnxslim_tk.graph.edit import add_node, constant
from onnxslim_tk.graph.layers import Layer
from onnxslim_tk.graph.model import Model, Tensor
from onnxslim_tk.kernels.least_squares import damped
from onnxslim_tk.kernels.lowrank import factorize
from onnxslim_tk.kernels.tensors import cp, tucker2
from onnxslim_tk.recover.chain import Parts, Step, conv_geometry

Floats = NDArray[np.float64]
DAMPING: Final = 1e-3
# Only against a factor that has lost a direction; the covariance is damped already.
TINY_DAMPING: Final = 1e-9


@dataclass(frozen=True, slots=True)
class Form:
    """A way to write a layer's weight with fewer numbers.

    ``obstacle`` says why a layer can't be written so, empty where it can; ``rank`` is the largest
    rank whose numbers stay within a count (0: none), given the target's step of channels;
    ``split`` gives the parts under the covariance of the inputs (None: all count the same),
    ``product`` the matrix ``(rows, inputs)`` that they stand for. ``steps`` are the nodes that run
    instead, none where only the weight is stored so; ``expand`` writes the matrix as operators on
    constants, for the runtime to fold at load (None: there is no way to).
    """

    obstacle: Callable[[Layer], str]
    rank: Callable[[Layer, float, int], int]
    split: Callable[[Layer, int, Floats | None], Parts]
    product: Callable[[Layer, Parts], Floats]
    steps: Callable[[Layer, int], Sequence[Step]]
    expand: Callable[[Model, Layer, Parts], Tensor] | None = None


def within(count: float, each: int, step: int) -> int:
    """The largest rank of ``each`` weights a unit that ``count`` allows, in whole steps."""
    # A share like 0.3 is a hair less in binary; that must not cost a rank.
    rank = int(count / each + 1e-9)
    return rank - rank % step if rank >= step else rank


def sides(layer: Layer) -> tuple[int, int]:
    """Rows and inputs of a layer's matrix."""
    rows, inputs = layer.matrix().shape[1:]
    return int(rows), int(inputs)


def fits_any(layer: Layer) -> str:
    """Nothing stands against a form that suits every layer."""
    return ""


def _needs_kernel(layer: Layer) -> str:
    square = layer.kind == "Conv" and len(layer.shape) == 4 and min(layer.shape[2:]) > 1
    return "" if square else f"{described(layer)} has no kernel of two axes"


def _channel_rank(layer: Layer, count: float, step: int) -> int:
    return min(within(count, sum(sides(layer)), step), *sides(layer))


def _channel_split(layer: Layer, rank: int, covariance: Floats | None) -> Parts:
    left, right = factorize(layer.matrix()[0], rank, covariance, DAMPING)
    return right, left


def _channel_product(layer: Layer, parts: Parts) -> Floats:
    return np.asarray(parts[1] @ parts[0], np.float64)


def _channel_steps(layer: Layer, rank: int) -> list[Step]:
    if layer.kind != "Conv":
        rows, inputs = sides(layer)
        return [Step((rank, inputs), {}), Step((rows, rank), {})]
    own = {k: v for k, v in layer.node.attrs.items() if k != "group"}
    kernel = list(layer.shape[2:])
    return [
        Step((rank, *layer.shape[1:]), own | {"kernel_shape": kernel}),
        _pointwise(layer, layer.shape[0], rank),
    ]


def _channel_expand(model: Model, layer: Layer, parts: Parts) -> Tensor:
    first, second = (constant(model, part.astype(np.float32)) for part in parts)
    return add_node(model, layer.graph, "MatMul", [second, first])


def _pointwise(layer: Layer, rows: int, channels: int) -> Step:
    ones = [1] * (len(layer.shape) - 2)
    return Step((rows, channels, *ones), {"kernel_shape": ones})


def _spatial_rank(layer: Layer, count: float, step: int) -> int:
    rows, channels, height, width = layer.shape
    most = min(rows * width, channels * height)
    return min(within(count, channels * height + rows * width, step), most)


def _spatial_split(layer: Layer, rank: int, covariance: Floats | None) -> Parts:
    """Under the covariance of kernel columns taken as uncorrelated; then the second is refitted."""
    rows, channels, height, width = layer.shape
    weight = layer.weight.astype(np.float64)
    columns = weight.transpose(0, 3, 1, 2).reshape(rows * width, channels * height)
    marginal = None
    if covariance is not None:
        grid = covariance.reshape(channels, height, width, channels, height, width)
        marginal = np.einsum("aijbkj->aibk", grid).reshape(channels * height, -1) / width
    left, right = factorize(columns, rank, marginal, DAMPING)
    second = left.reshape(rows, width, rank).transpose(0, 2, 1)
    if covariance is not None:
        second = _refit(weight.reshape(rows, -1), right, covariance, width)
    return right.reshape(rank, channels, height, 1), second[:, :, None]


def _refit(weight: Floats, right: Floats, covariance: Floats, width: int) -> Floats:
    """The second factor ``(rows, rank, width)`` that is best for the first, ``right``."""
    normal = damped(covariance, DAMPING)

    def contract(matrix: Floats) -> Floats:
        by_column = matrix.reshape(len(matrix), -1, width).transpose(0, 2, 1)
        return (by_column @ right.T).transpose(0, 2, 1).reshape(len(matrix), -1)

    cross = contract(normal)
    gram = damped(contract(np.ascontiguousarray(cross.T)), TINY_DAMPING)
    factor = cho_factor(gram, lower=True, check_finite=False)
    solved = cho_solve(factor, (weight @ cross).T, check_finite=False).T
    return np.asarray(solved, np.float64).reshape(len(weight), -1, width)


def _spatial_product(layer: Layer, parts: Parts) -> Floats:
    whole = np.einsum("rci,nrj->ncij", parts[0][..., 0], parts[1][:, :, 0])
    return np.asarray(whole.reshape(len(whole), -1), np.float64)


def _spatial_steps(layer: Layer, rank: int) -> list[Step]:
    """Stride and padding go with the axis that they are of."""
    rows, channels, height, width = layer.shape
    strides, dilations, pads = conv_geometry(layer)
    vertical = {
        "kernel_shape": [height, 1],
        "strides": [strides[0], 1],
        "dilations": [dilations[0], 1],
        "pads": [pads[0], 0, pads[2], 0],
    }
    horizontal = {
        "kernel_shape": [1, width],
        "strides": [1, strides[1]],
        "dilations": [1, dilations[1]],
        "pads": [0, pads[1], 0, pads[3]],
    }
    return [Step((rank, channels, height, 1), vertical), Step((rows, rank, 1, width), horizontal)]


def _inner(layer: Layer, rank: int) -> int:
    """Channels that Tucker-2 reads with, for ``rank`` that it gives: the same share of both."""
    return max(1, min(layer.shape[1], round(rank * layer.shape[1] / layer.shape[0])))


def _tucker_rank(layer: Layer, count: float, step: int) -> int:
    rows, channels = layer.shape[:2]

    def size(rank: int) -> int:
        return sum(prod(s.shape) for s in _tucker_steps(layer, rank))

    taps = layer.size // (rows * channels)
    possible = (r for r in range(1, rows + 1) if r <= _inner(layer, r) * taps)
    fitting = [r for r in possible if size(r) <= count + 1e-6]
    rank = max(fitting, default=0)
    return rank - rank % step if rank >= step else rank


def _tucker_split(layer: Layer, rank: int, covariance: Floats | None) -> Parts:
    weight = layer.weight.reshape(*layer.shape[:2], -1)
    last, core, first = tucker2(weight, (rank, _inner(layer, rank)), covariance, DAMPING)
    return first, core, last


def _tucker_product(layer: Layer, parts: Parts) -> Floats:
    whole = np.einsum("nr,rsk,sc->nck", parts[2], parts[1], parts[0], optimize=True)
    return np.asarray(whole.reshape(len(whole), -1), np.float64)


def _tucker_steps(layer: Layer, rank: int) -> list[Step]:
    inner, kernel = _inner(layer, rank), layer.shape[2:]
    own = {k: v for k, v in layer.node.attrs.items() if k != "group"}
    return [
        _pointwise(layer, inner, layer.shape[1]),
        Step((rank, inner, *kernel), own | {"kernel_shape": list(kernel)}),
        _pointwise(layer, layer.shape[0], rank),
    ]


def _cp_rank(layer: Layer, count: float, step: int) -> int:
    rows, channels, *kernel = layer.shape
    return within(count, rows + channels + prod(kernel), step)


def _cp_split(layer: Layer, rank: int, covariance: Floats | None) -> Parts:
    last, taps, first = cp(layer.weight.reshape(*layer.shape[:2], -1), rank, covariance, DAMPING)
    return first, taps, last


def _cp_product(layer: Layer, parts: Parts) -> Floats:
    whole = np.einsum("nr,rk,rc->nck", parts[2], parts[1], parts[0], optimize=True)
    return np.asarray(whole.reshape(len(whole), -1), np.float64)


def _cp_steps(layer: Layer, rank: int) -> list[Step]:
    kernel = layer.shape[2:]
    own = dict(layer.node.attrs) | {"kernel_shape": list(kernel), "group": rank}
    return [
        _pointwise(layer, rank, layer.shape[1]),
        Step((rank, 1, *kernel), own),
        _pointwise(layer, layer.shape[0], rank),
    ]


CHANNEL: Final = Form(
    *(fits_any, _channel_rank, _channel_split, _channel_product, _channel_steps, _channel_expand)
)
"""k x k to few channels, then 1 x 1 (Zhang et al., 2015); of a matrix its truncated SVD."""
SPATIAL: Final = Form(
    *(_needs_kernel, _spatial_rank, _spatial_split, _spatial_product, _spatial_steps)
)
"""k x 1, then 1 x k (Jaderberg et al., 2014)."""
TUCKER: Final = Form(*(_needs_kernel, _tucker_rank, _tucker_split, _tucker_product, _tucker_steps))
"""1 x 1 to few channels, k x k between few, 1 x 1 (Kim et al., 2016)."""
CP: Final = Form(*(_needs_kernel, _cp_rank, _cp_split, _cp_product, _cp_steps))
"""1 x 1, a depthwise k x k, 1 x 1 (Lebedev et al., 2015)."""


def described(layer: Layer) -> str:
    """A layer in words."""
    if layer.kind != "Conv":
        return "a {} x {} matrix".format(*layer.shape)
    kernel = "x".join(str(n) for n in layer.shape[2:])
    return f"a {kernel} kernel of {layer.channels} channels"
