from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from onnxslim_tk.graph.formats import (
    DYNAMIC,
    HALF,
    OPERATORS,
    QDQ,
    WEIGHTS,
    number_formats,
    told,
)
from tests.models import chain_cnn, model_of, normal, opened

HEAD = '<ir_version: 10, opset_import: ["": 21, "com.microsoft": 1]>'
BYTES = np.arange(64, dtype=np.int8).reshape(8, 8)
SCALES = {"q": BYTES, "s": np.float32(0.1), "z": np.uint8(3)}

CASES: dict[str, tuple[str, str, dict[str, Any], dict[str, int]]] = {
    "QDQ": (
        "float",
        "a = QuantizeLinear(x, s, z) b = DequantizeLinear(a, s, z) w = DequantizeLinear(q, s) "
        "y = MatMul(b, w)",
        SCALES,
        {QDQ: 1},
    ),
    "QOperator": (
        "float",
        "a = QuantizeLinear(x, s, z) b = QLinearMatMul(a, s, z, q, s, k, s, z) "
        "y = DequantizeLinear(b, s, z)",
        {**SCALES, "k": np.int8(0)},
        {OPERATORS: 1},
    ),
    "dynamic": (
        "float",
        "a, t, u = DynamicQuantizeLinear(x) b = MatMulInteger(a, q, u) c = Cast<to=1>(b) "
        "y = Mul(c, t)",
        SCALES,
        {DYNAMIC: 1},
    ),
    "dynamic, fused": (
        "float",
        "y = com.microsoft.DynamicQuantizeMatMul(x, q, s)",
        SCALES,
        {DYNAMIC: 1},
    ),
    "int8 weights behind a product": (
        "float",
        "c = Cast<to=1>(q) w = Mul(c, s) y = MatMul(x, w)",
        SCALES,
        {WEIGHTS: 1},
    ),
    "int8 weights behind DequantizeLinear": (
        "float",
        "w = DequantizeLinear(q, s) y = MatMul(x, w)",
        SCALES,
        {WEIGHTS: 1},
    ),
    "weights in blocks": (
        "float",
        "w = DequantizeLinear<axis=0, block_size=4>(q, t) y = MatMul(x, w)",
        {**SCALES, "t": normal(0, 2, 8)},
        {WEIGHTS: 1},
    ),
    "weights of n bits": (
        "float",
        "y = com.microsoft.MatMulNBits<K=8, N=8, bits=4, block_size=16>(x, p, s)",
        {**SCALES, "p": BYTES.view(np.uint8)},
        {WEIGHTS: 1},
    ),
    "float16": (
        "float16",
        "y = MatMul(x, w)",
        {"w": normal(0, 8, 8).astype(np.float16)},
        {HALF: 1},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_knows_how_a_model_is_quantized(name: str) -> None:
    dtype, body, constants, expected = CASES[name]
    text = f"{HEAD} g ({dtype}[N, 8] x) => ({dtype}[N, 8] y) {{ {body} }}"
    assert number_formats(opened(model_of(text, constants))) == expected


def test_sees_four_bits_behind_one_scale() -> None:
    text = f"""{HEAD} g (float[N, 8] x) => (float[N, 8] y) {{
        w = DequantizeLinear(q, s) y = MatMul(x, w)
    }}"""
    proto = model_of(text, {"s": np.float32(0.1)})
    packed = helper.make_tensor("q", TensorProto.INT4, [8, 8], bytes(32), raw=True)
    proto.graph.initializer.append(packed)
    assert number_formats(opened(proto)) == {WEIGHTS: 1}


def test_counts_bodies_and_finds_nothing_in_a_float_model() -> None:
    assert number_formats(opened(chain_cnn())) == {}
    text = f"""{HEAD} g (bool c, float[N, 8] x) => (float[A, B] y) {{
        y = If(c)<
            then_branch = a () => (float[A, B] p) {{
                w = DequantizeLinear(q, s)
                p = MatMul(x, w)
            }},
            else_branch = b () => (float[A, B] r) {{
                v = DequantizeLinear(q, s)
                r = MatMul(x, v)
            }}
        >
    }}"""
    proto: onnx.ModelProto = model_of(text, SCALES)
    formats = number_formats(opened(proto))
    assert formats == {WEIGHTS: 2}
    assert told(formats) == "quantized weights alone x 2"
