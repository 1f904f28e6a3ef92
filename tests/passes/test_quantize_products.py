from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from onnxslim_tk.measure.validate import INTEGER_KERNELS
from onnxslim_tk.passes.quantize import Quantize
from tests.models import mlp, normal
from tests.quantized import feeds_of, graph, near, quantized, running

PRODUCTS: dict[str, tuple[str, tuple[int, ...], int, Mapping[str, Any], dict[str, int]]] = {
    "MatMul": ("y = MatMul(x, w)", (8, 32), 2, {}, {"QGemm": 1}),
    "with a bias": ("m = MatMul(x, w) y = Add(m, b)", (8, 32), 2, {"b": 48}, {"QGemm": 1}),
    "the bias first": ("m = MatMul(x, w) y = Add(b, m)", (8, 32), 2, {"b": (1, 48)}, {"QGemm": 1}),
    "a bias that raises the rank": (
        "m = MatMul(x, w) y = Add(m, b)",
        (8, 32),
        3,
        {"b": (1, 1, 48)},
        {"MatMulIntegerToFloat": 1, "Add": 1},
    ),
    "rank 3": (
        "m = MatMul(x, w) y = Add(m, b)",
        (2, 8, 32),
        3,
        {"b": 48},
        {"MatMulIntegerToFloat": 1, "Add": 1},
    ),
    "rank 4": (
        "m = MatMul(x, w) y = Add(m, b)",
        (2, 2, 8, 32),
        4,
        {"b": (1, 48)},
        {"MatMulIntegerToFloat": 1, "Add": 1},
    ),
    "Gemm": ("y = Gemm(x, w, b)", (8, 32), 2, {"b": 48}, {"QGemm": 1}),
    "Gemm without bias": ("y = Gemm(x, w)", (8, 32), 2, {}, {"QGemm": 1}),
    "Gemm with one number": ("y = Gemm(x, w, b)", (8, 32), 2, {"b": ()}, {"QGemm": 1}),
    "Gemm with a bias for each row": (
        "y = Gemm(x, w, b)",
        (48, 32),
        2,
        {"b": (48, 1)},
        {"Gemm": 1},
    ),
    "Gemm with a full bias": ("y = Gemm(x, w, b)", (8, 32), 2, {"b": (8, 48)}, {"Gemm": 1}),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_matrix_products_of_fixed_shapes_run_in_integers(name: str) -> None:
    body, shape, rank, bias, operators = PRODUCTS[name]
    constants: dict[str, Any] = {"w": normal(0, 32, 48)}
    for key, size in bias.items():
        dims = (size,) if isinstance(size, int) else size
        constants[key] = np.asarray(normal(1, *dims), np.float32)
    proto = graph(body, ", ".join(map(str, shape)), rank, constants)
    model = quantized(proto, feeds_of(*shape))
    near(proto, model, feeds_of(*shape)[0], 30)
    floats = "Gemm" in operators
    assert running(model) == ({} if floats else {"QuantizeLinear": 1}) | operators


def test_products_of_an_open_batch_and_chains_of_them() -> None:
    model = quantized(mlp(), feeds_of(4, 32))
    near(mlp(), model, {"x": normal(7, 9, 32)}, 30)
    assert running(model) == {"QuantizeLinear": 1, "QGemm": 3}


def test_bias_correction_leaves_matrix_products_without_bias_in_integers() -> None:
    weights = {"w": normal(0, 32, 48), "v": normal(1, 48, 16)}
    proto = graph("m = MatMul(x, w) r = Relu(m) y = MatMul(r, v)", "8, 32", 2, weights)
    for correction in ("none", "expected", "measured"):
        model = quantized(proto, feeds_of(8, 32), Quantize(bias_correction=correction))
        near(proto, model, feeds_of(8, 32)[0], 30)
        found = running(model)
        assert sum(found.get(kernel, 0) for kernel in INTEGER_KERNELS) == 2
