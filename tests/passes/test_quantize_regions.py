from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from onnxslim_tk.measure.runtime import running_operators
from tests.models import model_of, normal, opened, outputs_of, since, to_proto
from tests.quantized import (
    CONV,
    EXPECTED,
    HEAD,
    IMAGE,
    context_of,
    feeds_of,
    graph,
    near,
    quantized,
    running,
)
from tests.rows import rows_of

CASES: dict[str, tuple[str, Mapping[str, Any], dict[str, int]]] = {
    "Relu": ("c = Conv(x, w, b) r = Relu(c) y = Conv(r, v)", {}, {"QLinearConv": 2}),
    "Clip from 0": (
        "c = Conv(x, w, b) r = Clip(c, low, high) y = Conv(r, v)",
        {"low": np.float32(0), "high": np.float32(1.5)},
        {"QLinearConv": 2},
    ),
    "Clip from below 0": (
        "c = Conv(x, w, b) r = Clip(c, low, high) y = Conv(r, v)",
        {"low": np.float32(-1), "high": np.float32(1)},
        {"QLinearConv": 2},
    ),
    "a Relu that is not the only reader": (
        "c = Conv(x, w, b) r = Relu(c) s = Add(c, r) y = Conv(s, v)",
        {},
        {"QLinearConv": 2, "QLinearAdd": 1, "QuantizeLinear": 2, "DequantizeLinear": 2},
    ),
    "grouped": (
        "c = Conv<group=2>(x, u) y = Conv(c, v)",
        {"u": normal(3, 16, 2, 3, 3)},
        {"QLinearConv": 2},
    ),
    "Concat": (
        "c = Conv(x, w, b) r = Relu(c) d = Conv(x, u) k = Concat<axis=1>(r, d) y = Conv(k, z)",
        {"u": normal(3, 16, 4, 3, 3), "z": normal(4, 8, 32, 1, 1)},
        {"QLinearConv": 3, "QLinearConcat": 1},
    ),
    "MaxPool": (
        "c = Conv(x, w, b) r = Relu(c) p = MaxPool<kernel_shape=[2,2]>(r) y = Conv(p, v)",
        {},
        {"QLinearConv": 2, "NhwcMaxPool": 1},
    ),
    "the greatest and the least of a layer": (
        "c = Conv(x, w, b) p = ReduceMax<axes=[2, 3]>(c) q = ReduceMin<axes=[2, 3]>(c) "
        "y = Add(p, q)",
        {},
        {"QLinearConv": 1, "ReduceMax": 1, "ReduceMin": 1, "DequantizeLinear": 2, "Add": 1},
    ),
    "AveragePool and nearest Resize": (
        "c = Conv(x, w) p = AveragePool<kernel_shape=[2,2]>(c) "
        'z = Resize<mode="nearest">(p, , s) y = Conv(z, v)',
        {"s": np.array([1, 1, 2, 2], np.float32)},
        {"QLinearConv": 2, "QLinearAveragePool": 1, "Resize": 1},
    ),
    "linear Resize": (
        'c = Conv(x, w) z = Resize<mode="linear">(c, , s) y = Conv(z, v)',
        {"s": np.array([1, 1, 2, 2], np.float32)},
        {"QLinearConv": 2, "Resize": 1, "QuantizeLinear": 2, "DequantizeLinear": 2},
    ),
    "SiLU": (
        "c = Conv(x, w, b) k = Sigmoid(c) s = Mul(c, k) y = Conv(s, v)",
        {},
        {"QLinearConv": 2, "QLinearSigmoid": 1, "QLinearMul": 1},
    ),
    "HardSwish": (
        "c = Conv(x, w, b) h = HardSwish(c) y = Conv(h, v)",
        {},
        {"QLinearConv": 2, "QLinearMul": 1, "Clip": 1},
    ),
    "a gate of two nodes": (
        "c = Conv(x, w, b) s = HardSigmoid<alpha=0.166666, beta=0.5>(c) m = Mul(c, s) "
        "y = Conv(m, v)",
        {},
        {"QLinearConv": 2, "QLinearMul": 1, "Clip": 1},
    ),
    "squeeze and excitation by a HardSigmoid": (
        "c = Conv(x, w) r = Relu(c) p = GlobalAveragePool(r) d = Conv(p, u) e = Relu(d) "
        "f = Conv(e, t) s = HardSigmoid(f) m = Mul(r, s) y = Conv(m, v)",
        {"u": normal(3, 8, 16, 1, 1), "t": normal(4, 16, 8, 1, 1)},
        {"QLinearConv": 4, "QLinearGlobalAveragePool": 1, "QLinearMul": 1},
    ),
    "numbers behind a HardSwish": (
        "c = Conv(x, w, b) h = HardSwish(c) m = Mul(f, h) a = Add(m, g) "
        "y = Conv<pads=[1,1,1,1]>(a, z)",
        {"f": np.float32(0.6), "g": np.float32(-0.4), "z": normal(4, 8, 16, 3, 3)},
        {"QLinearConv": 2, "QLinearMul": 1, "Clip": 1},
    ),
    "numbers behind an Add": (
        "c = Conv(x, w, b) d = Conv(x, u) s = Add(c, d) m = Div(s, f) a = Sub(m, g) y = Conv(a, v)",
        {"f": np.float32(3), "g": np.float32(0.7), "u": normal(3, 16, 4, 3, 3)},
        {"QLinearConv": 3, "QLinearAdd": 1},
    ),
    "a floor of its own for every channel": (
        "c = Conv(x, w, b) m = Max(c, k) p = MaxPool<kernel_shape=[2,2]>(m) y = Conv(p, v)",
        {"k": normal(3, 1, 16, 1, 1)},
        {"QLinearConv": 2, "QLinearAdd": 1, "NhwcMaxPool": 1},
    ),
    "a floor of its own for every column": (
        "c = Conv(x, w, b) m = Max(c, k) y = Conv(m, v)",
        {"k": normal(3, 1, 1, 1, 7)},
        {"QLinearConv": 2, "Max": 1, "QuantizeLinear": 2, "DequantizeLinear": 2},
    ),
    "Pad": (
        "c = Conv(x, w, b) h = Sub(c, g) p = Pad(h, s) y = Conv(p, v)",
        {"s": np.array([0, 0, 2, 5, 0, 0, 1, 0], np.int64), "g": np.float32(0.3)},
        {"QLinearConv": 2, "Pad": 1},
    ),
    "squeeze and excitation": (
        "c = Conv(x, w) r = Relu(c) p = GlobalAveragePool(r) d = Conv(p, u) e = Relu(d) "
        "f = Conv(e, t) s = Sigmoid(f) m = Mul(r, s) y = Conv(m, v)",
        {"u": normal(3, 8, 16, 1, 1), "t": normal(4, 16, 8, 1, 1)},
        {"QLinearConv": 4, "QLinearGlobalAveragePool": 1, "QLinearSigmoid": 1, "QLinearMul": 1},
    ),
    "a bridge in float": (
        "c = Conv(x, w, b) k = PRelu(c, s) y = Conv(k, v)",
        {"s": normal(3, 16, 1, 1)},
        {"QLinearConv": 2, "PRelu": 1, "QuantizeLinear": 2, "DequantizeLinear": 2},
    ),
    "an Add that nothing in integers reads": (
        "c = Conv(x, w, b) d = Conv(x, u) y = Add(c, d)",
        {"u": normal(3, 16, 4, 3, 3)},
        {"QLinearConv": 2, "Add": 1, "DequantizeLinear": 2},
    ),
    "a tensor that integers and floats read": (
        "c = Conv(x, w, b) r = Relu(c) d = Conv(r, v) e = ReduceMean(r) y = Add(d, e)",
        {},
        {"QLinearConv": 2, "ReduceMean": 1, "Add": 1, "DequantizeLinear": 2},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_convolutions_run_in_integers_with_what_lies_between_them(name: str) -> None:
    body, more, operators = CASES[name]
    used = {key: value for key, value in CONV.items() if f"{key}," in body or f"{key})" in body}
    proto = graph(body, IMAGE, 4, used | dict(more))
    feeds = feeds_of(1, 4, 9, 9)
    model = quantized(proto, feeds)
    near(proto, model, feeds[0], 25)
    edges = {"QuantizeLinear": 1, "DequantizeLinear": 1}
    assert running(model) == edges | operators


@pytest.mark.parametrize("dims", [1, 3])
def test_convolutions_of_other_dimensions_run_in_integers(dims: int) -> None:
    sides = [7] * dims
    constants = {"w": normal(0, 16, 4, *[3] * dims), "v": normal(1, 8, 16, *[1] * dims)}
    body = "c = Conv(x, w) r = Relu(c) y = Conv(r, v)"
    proto = graph(body, ", ".join(map(str, (1, 4, *sides))), 2 + dims, constants)
    feeds = feeds_of(1, 4, *sides)
    model = quantized(proto, feeds)
    near(proto, model, feeds[0], 25)
    assert running(model)["QLinearConv"] == 2


@pytest.mark.parametrize("auto", ["SAME_UPPER", "SAME_LOWER", "VALID"])
def test_convolutions_that_pad_by_themselves_run_in_integers(auto: str) -> None:
    body = f'''c = Conv<auto_pad="{auto}", strides=[2,2]>(x, w, b) r = Relu(c)
        d = Conv<auto_pad="{auto}">(r, v) y = Relu(d)'''
    constants = {"w": normal(0, 16, 8, 3, 3), "b": normal(1, 16), "v": normal(2, 16, 16, 2, 2)}
    proto = graph(body, "N, 8, 9, 9", 4, constants)
    feeds = feeds_of(2, 8, 9, 9)
    model = quantized(proto, feeds)
    near(proto, model, feeds[0], 30)
    kinds = running_operators(to_proto(model).SerializeToString())
    assert kinds["QLinearConv"] == 2


@since("1.20", "flattens in float")
def test_pooling_and_flattening_on_the_way_to_a_gemm_stay_in_integers() -> None:
    body = (
        "c = Conv(x, w, b) r = Relu(c) p = MaxPool<kernel_shape=[7,7]>(r) f = Flatten(p) "
        "s = Reshape(f, shape) y = Gemm(s, u)"
    )
    constants = {"w": CONV["w"], "b": CONV["b"], "u": normal(3, 16, 8), "shape": np.array([1, 16])}
    feeds = feeds_of(1, 4, 9, 9)
    model = quantized(graph(body, IMAGE, 2, constants), feeds)
    near(graph(body, IMAGE, 2, constants), model, feeds[0], 25)
    found = running(model)
    assert (found["QuantizeLinear"], found["QLinearConv"], found["QGemm"]) == (1, 1, 1)
    assert "DequantizeLinear" not in found


def test_an_output_that_is_made_in_integers_and_read_further() -> None:
    text = f"""{HEAD} g (float[1, 4, 9, 9] x) => (float[1, 16, 7, 7] r, float[1, 8, 7, 7] y) {{
        c = Conv(x, w, b)
        r = Relu(c)
        y = Conv(r, v)
    }}"""
    proto = model_of(text, CONV)
    feeds = feeds_of(1, 4, 9, 9)
    model = quantized(proto, feeds)
    near(proto, model, feeds[0], 25)
    assert running(model)["QLinearConv"] == 2
    assert "Relu" not in running(model)


def test_what_cannot_run_in_integers_is_left_in_float() -> None:
    text = f"""{HEAD} g (float[1, 4, 9, 9] x, float[16] b) => (float[1, 16, 8, 8] y) {{
        c = Conv(x, w, b)
        t = ConvTranspose(c, u)
        l = Log(t)
        r = Relu(l)
        y = Conv(r, v)
    }}"""
    constants = {"w": CONV["w"], "u": normal(3, 16, 16, 2, 2), "v": normal(4, 16, 16, 1, 1)}
    proto = model_of(text, constants)
    feeds = [{"x": normal(k, 1, 4, 9, 9), "b": normal(k, 16)} for k in range(3)]
    model = opened(proto)
    rows = rows_of(model, context_of(model, feeds), EXPECTED)
    # A bias that is computed; an operator that has no integer kernel; an input that is not finite.
    assert [(row.targets, row.setting) for row in rows] == [((k,), "float") for k in "cty"]
    found = quantized(proto, feeds)
    assert outputs_of(found, feeds[0])["y"].shape == (1, 16, 8, 8)
