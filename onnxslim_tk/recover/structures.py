"""Structured matrices in place of a layer's weight: blocks, Kronecker products, tied diagonals."""

from collections.abc import Callable, Sequence
from functools import partial
from math import isqrt
from typing import Final

import numpy as np
from numpy.typing import NDArray

from onnxslim_tk.graph.edit import add_node, constant
from onnxslim_tk.graph.layers import Layer
from onnxslim_tk.graph.model import Model, Tensor
from onnxslim_tk.kernels.structured import (
    block_index,
    circulant_index,
    hankel_index,
    kronecker,
    spread,
    tied,
    toeplitz_index,
)
from onnxslim_tk.recover.chain import Parts, Step
from onnxslim_tk.recover.factors import DAMPING, Form, described, fits_any, sides

Floats = NDArray[np.float64]
Index = NDArray[np.int64]


def _no_steps(layer: Layer, rank: int) -> Sequence[Step]:
    return ()


def _counted(layer: Layer, count: float, step: int, make: Callable[[int, int], Index]) -> int:
    """1 where so many values are within the count."""
    rows, inputs = sides(layer)
    return int(make(rows, inputs)[[0, 0, -1, -1], [0, -1, 0, -1]].max() < count)


def _tied_split(
    layer: Layer, rank: int, covariance: Floats | None, make: Callable[[int, int], Index]
) -> Parts:
    return (tied(layer.matrix()[0], make(*sides(layer)), covariance, DAMPING),)


def _tied_product(layer: Layer, parts: Parts, make: Callable[[int, int], Index]) -> Floats:
    return spread(parts[0], make(*sides(layer)))


def _tied_expand(
    model: Model, layer: Layer, parts: Parts, make: Callable[[int, int], Index]
) -> Tensor:
    """The values picked by an index that is itself the sum of a column and a row."""
    rows, inputs = sides(layer)
    index, graph = make(rows, inputs), layer.graph
    column = constant(model, index[:, :1].astype(np.int64))
    row = constant(model, (index[:1] - index[0, 0]).astype(np.int64))
    values = constant(model, parts[0].astype(np.float32))
    if make is circulant_index:
        # The values three times in a row: no sum of column and row leaves them.
        values = add_node(model, graph, "Concat", [values, values, values], attrs={"axis": 0})
        size = len(parts[0])
        column = constant(model, np.arange(rows)[:, None] + size)
        row = constant(model, -np.arange(inputs)[None])
    places = add_node(model, graph, "Add", [column, row])
    return add_node(model, graph, "Gather", [values, places], attrs={"axis": 0})


def _tied_form(make: Callable[[int, int], Index]) -> Form:
    return Form(
        fits_any,
        partial(_counted, make=make),
        partial(_tied_split, make=make),
        partial(_tied_product, make=make),
        _no_steps,
        partial(_tied_expand, make=make),
    )


TOEPLITZ: Final = _tied_form(toeplitz_index)
"""One value for each diagonal.

Run as a convolution it takes (rows + inputs - 1) / inputs times the multiplications of the dense
product, so that it is stored alone.
"""
HANKEL: Final = _tied_form(hankel_index)
"""One value for each antidiagonal."""
CIRCULANT: Final = _tied_form(circulant_index)
"""Diagonals that come round again."""


def _grouped_only(layer: Layer) -> str:
    return "" if layer.kind == "Conv" else f"{described(layer)} has no groups"


def _blocks(layer: Layer, count: float, step: int) -> int:
    """The fewest blocks that are within the count; a kernel's taps stay together."""
    rows, channels = layer.shape[:2]
    least = int(np.ceil(layer.size / max(count, 1.0) - 1e-9))
    fitting = (
        b for b in range(max(least, 2), min(rows, channels) + 1) if not (rows % b or channels % b)
    )
    return next(fitting, 0)


def _block_split(layer: Layer, rank: int, covariance: Floats | None) -> Parts:
    rows, inputs = sides(layer)
    values = tied(layer.matrix()[0], block_index(rows, inputs, rank), covariance, DAMPING)
    return (values.reshape(rows, inputs // rank),)


def _block_product(layer: Layer, parts: Parts) -> Floats:
    rows, inputs = sides(layer)
    blocks = inputs // parts[0].shape[1]
    return spread(parts[0].ravel(), block_index(rows, inputs, blocks))


def _block_steps(layer: Layer, rank: int) -> list[Step]:
    rows, channels, *kernel = layer.shape
    own = dict(layer.node.attrs) | {"group": rank, "kernel_shape": list(kernel)}
    return [Step((rows, channels // rank, *kernel), own)]


BLOCKS: Final = Form(_grouped_only, _blocks, _block_split, _block_product, _block_steps)
"""Blocks on the diagonal: a convolution in groups."""


def _high(count: int) -> int:
    """The divisor nearest to the square root, from below."""
    return next(k for k in range(isqrt(count), 0, -1) if count % k == 0)


def _terms(layer: Layer, count: float, step: int) -> int:
    rows, inputs = sides(layer)
    high, wide = _high(rows), _high(inputs)
    low, narrow = rows // high, inputs // wide
    return min(int(count / (high * wide + low * narrow) + 1e-9), high * wide, low * narrow)


def _kronecker_split(layer: Layer, rank: int, covariance: Floats | None) -> Parts:
    matrix = layer.matrix()[0]
    left = _high(matrix.shape[0]), _high(matrix.shape[1])
    return kronecker(matrix, left, rank, covariance, DAMPING)


def _kronecker_product(layer: Layer, parts: Parts) -> Floats:
    whole = np.einsum("tia,tjb->ijab", *parts, optimize=True)
    return np.asarray(whole.reshape(sides(layer)), np.float64)


def _kronecker_expand(model: Model, layer: Layer, parts: Parts) -> Tensor:
    (terms, high, wide), (_, low, narrow) = parts[0].shape, parts[1].shape
    graph = layer.graph
    first = constant(model, parts[0].reshape(terms, -1).T.astype(np.float32))
    second = constant(model, parts[1].reshape(terms, -1).astype(np.float32))
    apart = constant(model, np.array([high, wide, low, narrow]))
    both = constant(model, np.array([high * low, wide * narrow]))
    product = add_node(model, graph, "MatMul", [first, second])
    grid = add_node(model, graph, "Reshape", [product, apart])
    turned = add_node(model, graph, "Transpose", [grid], attrs={"perm": [0, 2, 1, 3]})
    return add_node(model, graph, "Reshape", [turned, both])


KRONECKER: Final = Form(
    *(fits_any, _terms, _kronecker_split, _kronecker_product, _no_steps, _kronecker_expand)
)
"""A sum of Kronecker products."""
