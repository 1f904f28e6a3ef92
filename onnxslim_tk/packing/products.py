"""Scales of biases that are another scale's multiples are computed when the model is loaded.

A quantized bias lies on the product of two grids, that of its layer's input and that of its weight,
and both are in the file already.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper

from onnxslim_tk.graph.domains import STANDARD_DOMAINS
from onnxslim_tk.graph.weights import Weights
from onnxslim_tk.packing.chain import stored_size
from onnxslim_tk.packing.inspect import bits
from onnxslim_tk.packing.scopes import Scope, scopes

_BIASED = ("Conv", "ConvTranspose", "Gemm")


@dataclass(frozen=True)
class Product:
    """A tensor that is computed now, and its bytes in the file before and after."""

    name: str
    bytes_before: int
    bytes_after: int


def scale_products(model: onnx.ModelProto, weights: Weights) -> list[Product]:
    """Compute scales of biases by a Mul, in place, where the bits are the same and bytes fewer."""
    found: list[Product] = []
    counts = Counter(name for scope in scopes(model) for name in scope.defined)
    for scope in scopes(model):
        found += _in_scope(scope, counts, weights)
    return found


def _in_scope(scope: Scope, counts: Counter[str], weights: Weights) -> list[Product]:
    graph = scope.graph
    stored = {t.name: t for t in graph.initializer if counts[t.name] == 1}
    fixed = scope.interface()
    grids = {
        node.output[0]: node.input[1]
        for node in graph.node
        if node.op_type == "DequantizeLinear"
        and node.domain in STANDARD_DOMAINS
        and len(node.input) > 1
        and node.output
    }
    products: dict[str, onnx.NodeProto] = {}
    rows = []
    for node in graph.node:
        if node.op_type not in _BIASED or len(node.input) < 3:
            continue
        source, weight, bias = (grids.get(name, "") for name in node.input[:3])
        if bias in products or bias in fixed or not stored.keys() >= {source, weight, bias}:
            continue
        made = helper.make_node("Mul", [weight, source], [bias])
        before, after = weights.stored_size(stored[bias]), stored_size(made)
        tensors = stored[source], stored[weight], stored[bias]
        if after < before and weight not in products and _is_product(*tensors, weights):
            products[bias] = made
            rows.append(Product(bias, before, after))
    for index in reversed(range(len(graph.initializer))):
        if graph.initializer[index].name in products:
            del graph.initializer[index]
    for position, made in enumerate(products.values()):
        graph.node.insert(position, made)
    return rows


def _is_product(
    source: TensorProto, weight: TensorProto, bias: TensorProto, weights: Weights
) -> bool:
    tensors = (source, weight, bias)
    if any(t.data_type != TensorProto.FLOAT or not weights.holds(t) for t in tensors):
        return False
    step, scales, wanted = (weights.values(t) for t in tensors)
    if step.ndim or scales.shape != wanted.shape:
        return False
    return np.array_equal(bits(np.multiply(scales, step, dtype=np.float32)), bits(wanted))
