"""A layer's weight as two thin factors, and the two nodes that they become."""

from dataclasses import dataclass
from math import prod
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve

from onnxslim_tk.graph.edit import add_node, constant, set_input, variable
from onnxslim_tk.graph.layers import Layer
from onnxslim_tk.graph.model import Model
from onnxslim_tk.kernels.least_squares import damped, relative_error
from onnxslim_tk.kernels.lowrank import factorize

Array = NDArray[Any]
Floats = NDArray[np.float64]
Kind = Literal["channel", "spatial"]
_DAMPING: Final = 1e-3
# Only against a factor that has lost a direction; the covariance is damped already.
_TINY_DAMPING: Final = 1e-9
_BIAS_OPTIONAL_OPSET: Final = 11


@dataclass(frozen=True, slots=True, eq=False)
class Factors:
    """Weights of two layers in the order of the data: ``first``, then ``second``.

    ``channel``: ``(rank, inputs)`` and ``(rows, rank)``, the layer's matrix being their product.
    ``spatial``: ``(rank, channels, height, 1)`` and ``(rows, rank, 1, width)``.
    """

    kind: Kind
    first: Floats
    second: Floats

    def product(self) -> Floats:
        """The matrix that the two stand for, ``(rows, inputs)``."""
        if self.kind == "channel":
            return np.asarray(self.second @ self.first, np.float64)
        whole = np.einsum("rci,nrj->ncij", self.first[..., 0], self.second[:, :, 0])
        return np.asarray(whole.reshape(len(whole), -1), np.float64)


def split_cost(layer: Layer, kind: Kind) -> int:
    """Weights that each unit of rank costs."""
    rows, inputs = layer.matrix().shape[1:]
    if kind == "channel":
        return int(rows + inputs)
    channels, height, width = layer.shape[1:]
    return channels * height + layer.shape[0] * width


def split(layer: Layer, kind: Kind, rank: int, covariance: Floats | None) -> Factors:
    """Factors of ``rank`` of the layer's weight, for one group.

    ``covariance`` ``(inputs, inputs)`` is that of the layer's input, uncentred; without it all
    inputs count the same. ``channel`` is the best of its rank. ``spatial`` splits under the
    covariance of kernel columns taken as uncorrelated, then gives the second factor its best
    values under the true one.
    """
    if kind == "channel":
        left, right = factorize(layer.matrix()[0], rank, covariance, _DAMPING)
        return Factors(kind, right, left)
    rows, channels, height, width = layer.shape
    weight = layer.weight.astype(np.float64)
    columns = weight.transpose(0, 3, 1, 2).reshape(rows * width, channels * height)
    marginal = None
    if covariance is not None:
        grid = covariance.reshape(channels, height, width, channels, height, width)
        marginal = np.einsum("aijbkj->aibk", grid).reshape(channels * height, -1) / width
    left, right = factorize(columns, rank, marginal, _DAMPING)
    second = left.reshape(rows, width, rank).transpose(0, 2, 1)
    if covariance is not None:
        second = _refit(weight.reshape(rows, -1), right, covariance, width)
    return Factors(kind, right.reshape(rank, channels, height, 1), second[:, :, None])


def _refit(weight: Floats, right: Floats, covariance: Floats, width: int) -> Floats:
    """The second factor ``(rows, rank, width)`` that is best for the first, ``right``."""
    normal = damped(covariance, _DAMPING)

    def contract(matrix: Floats) -> Floats:
        by_column = matrix.reshape(len(matrix), -1, width).transpose(0, 2, 1)
        return (by_column @ right.T).transpose(0, 2, 1).reshape(len(matrix), -1)

    cross = contract(normal)
    gram = damped(contract(np.ascontiguousarray(cross.T)), _TINY_DAMPING)
    factor = cho_factor(gram, lower=True, check_finite=False)
    solved = cho_solve(factor, (weight @ cross).T, check_finite=False).T
    return np.asarray(solved, np.float64).reshape(len(weight), -1, width)


def split_error(layer: Layer, factors: Factors, covariance: Floats | None) -> float:
    """Relative squared error of the layer's output with ``factors`` in place of its weight."""
    return relative_error(layer.matrix()[0], factors.product(), covariance)


def write_factors(model: Model, layer: Layer, factors: Factors) -> None:
    """Put a node for the first factor before the layer's node, which takes the second.

    The layer keeps its bias, output and id; the new node's id is the layer's with ``:a``.
    """
    node, op = layer.node, layer.kind
    inner = variable(model, layer.output)
    first, second = _stored(layer, factors)
    attrs: dict[str, Any] = {}
    if op == "Conv":
        attrs, left = _conv_attributes(layer, factors.kind)
        node.attrs.clear()
        node.attrs.update(left)
    elif op == "Gemm":
        if model.graph.opset >= _BIAS_OPTIONAL_OPSET:
            attrs = dict(node.attrs)
        else:
            op, first = "MatMul", first.T if layer.transposed else first
    add_node(
        model,
        layer.graph,
        op,
        [layer.input, constant(model, first.astype(np.float32))],
        [inner],
        attrs,
        (f"{layer.id}:a", *layer.names),
        layer.path,
    )
    made = layer.graph.nodes.pop()
    place = next(k for k, other in enumerate(layer.graph.nodes) if other is node)
    layer.graph.nodes.insert(place, made)
    set_input(node, 0, inner)
    set_input(node, 1, constant(model, second.astype(np.float32)))


def _stored(layer: Layer, factors: Factors) -> tuple[Floats, Floats]:
    first, second = factors.first, factors.second
    if layer.kind == "Conv" and factors.kind == "channel":
        ones = [1] * (len(layer.shape) - 2)
        return first.reshape(-1, *layer.shape[1:]), second.reshape(*second.shape, *ones)
    if layer.kind == "Conv" or layer.transposed:
        return first, second
    return first.T, second.T


def _conv_attributes(layer: Layer, kind: Kind) -> tuple[dict[str, Any], dict[str, Any]]:
    """Attributes of the two convolutions; stride and padding go with the axis that they are of."""
    kernel = list(layer.shape[2:])
    dims = len(kernel)
    if kind == "channel":
        first = {k: v for k, v in layer.node.attrs.items() if k != "group"}
        return first | {"kernel_shape": kernel}, {"kernel_shape": [1] * dims}
    strides, dilations, pads = conv_geometry(layer)
    vertical = {
        "kernel_shape": [kernel[0], 1],
        "strides": [strides[0], 1],
        "dilations": [dilations[0], 1],
        "pads": [pads[0], 0, pads[2], 0],
    }
    horizontal = {
        "kernel_shape": [1, kernel[1]],
        "strides": [1, strides[1]],
        "dilations": [1, dilations[1]],
        "pads": [0, pads[1], 0, pads[3]],
    }
    return vertical, horizontal


def conv_geometry(layer: Layer) -> tuple[list[int], list[int], list[int]]:
    """Strides, dilations and pads of a convolution, defaults written out."""
    dims = len(layer.shape) - 2
    attrs = layer.node.attrs
    strides = list(attrs.get("strides", [1] * dims))
    dilations = list(attrs.get("dilations", [1] * dims))
    return strides, dilations, list(attrs.get("pads", [0] * 2 * dims))


def work_share(layer: Layer, kind: Kind, rank: int, shapes: Any) -> float:
    """Multiply-accumulates of the two layers over those of the one."""
    if kind == "channel":
        return rank * split_cost(layer, kind) / layer.size
    rows, channels, height, width = layer.shape
    taken, given = shapes.get(layer.input.name), shapes.get(layer.output.name)
    # The first convolution runs at all input columns, whatever the stride along them.
    columns = float(conv_geometry(layer)[0][1])
    if not layer.path and taken and given and len(taken) == len(given) == 4 and given[3]:
        columns = taken[3] / given[3]
    return rank * (channels * height * columns + rows * width) / prod(layer.shape)
