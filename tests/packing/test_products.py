from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnxslim_tk.graph.weights import LARGEST, Weights
from onnxslim_tk.packing import pack, unpack
from onnxslim_tk.packing.products import scale_products

from .conftest import Build
from .test_runtime import run

CONV = """g (float[1,96,8,8] x) => (float[1,128,8,8] y) {
    xq = QuantizeLinear(x, sx, zx)
    xd = DequantizeLinear(xq, sx, zx)
    w = DequantizeLinear<axis = 0>(q, sw)
    b = DequantizeLinear<axis = 0>(bias, sb)
    c = Conv<pads = [1, 1, 1, 1]>(xd, w, b)
    cq = QuantizeLinear(c, sy, zx)
    y = DequantizeLinear(cq, sy, zx)
}"""
GEMM = """g (float[N,96] x) => (float[N,128] y) {
    xq = QuantizeLinear(x, sx, zx)
    xd = DequantizeLinear(xq, sx, zx)
    w = DequantizeLinear<axis = 1>(q, sw, zw)
    b = DequantizeLinear<axis = 0>(bias, sb)
    y = Gemm(xd, w, b)
}"""
LONE = """g (float[N,96] x) => (float[N,128] y) {
    w = DequantizeLinear<axis = 1>(q, sw, zw)
    y = MatMul(x, w)
}"""


def quantized(build: Build, text: str, shape: tuple[int, ...]) -> onnx.ModelProto:
    generator = np.random.default_rng(0)
    scales = (0.01 + generator.random(128)).astype(np.float16).astype(np.float32)
    step = np.array(0.0212345, np.float32)
    return build(
        text,
        q=generator.integers(-8, 8, shape).astype(np.int8),
        sw=scales,
        zw=np.zeros(128, np.int8),
        sx=step,
        sy=np.array(0.5, np.float32),
        zx=np.array(0, np.uint8),
        bias=generator.integers(-(1 << 20), 1 << 20, 128).astype(np.int32),
        sb=scales * step,
    )


@pytest.mark.parametrize(
    ("text", "shape", "kernel"),
    [(CONV, (128, 96, 3, 3), "QLinearConv"), (GEMM, (96, 128), "QGemm"), (LONE, (96, 128), "")],
    ids=["conv", "gemm", "alone"],
)
def test_scales_that_are_decoded_leave_integer_kernels_as_they_are(
    build: Build, tmp_path: Path, text: str, shape: tuple[int, ...], kernel: str
) -> None:
    model = quantized(build, text, shape)
    sizes = {"x": (1, 96, 8, 8)} if text is CONV else {"x": (5, 96)}
    feeds = {k: np.random.default_rng(1).random(s).astype(np.float32) for k, s in sizes.items()}
    expected, plain = run(model, feeds, tmp_path)
    rows = {row.name: row.encoding for row in pack(model)}
    assert rows["sw"] == "narrow"
    assert text is LONE or rows["sb"] == "product"
    result, folded = run(model, feeds, tmp_path)
    np.testing.assert_array_equal(result, expected)
    kinds = [node.op_type for node in folded.node]
    assert kinds == [node.op_type for node in plain.node]
    assert not kernel or kernel in kinds


def test_unpacking_gives_back_the_bits(build: Build) -> None:
    model = quantized(build, CONV, (128, 96, 3, 3))
    before = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    pack(model)
    assert "sb" not in {t.name for t in model.graph.initializer}
    unpack(model)
    after = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    assert all(np.array_equal(after[name], before[name]) for name in ("sw", "sb", "bias", "q"))


def test_minds_the_last_bit(build: Build) -> None:
    model = quantized(build, CONV, (128, 96, 3, 3))
    scales = next(t for t in model.graph.initializer if t.name == "sb")
    values = numpy_helper.to_array(scales).copy()
    values[5] = np.nextafter(values[5], np.float32(9))
    scales.CopyFrom(numpy_helper.from_array(values, "sb"))
    assert scale_products(model, Weights(LARGEST)) == []


def test_leaves_what_is_an_input_or_stands_elsewhere(build: Build) -> None:
    model = quantized(build, CONV, (128, 96, 3, 3))
    model.graph.input.append(onnx.helper.make_tensor_value_info("sb", 1, [128]))
    assert scale_products(model, Weights(LARGEST)) == []
    del model.graph.input[-1]
    assert [row.name for row in scale_products(model, Weights(LARGEST))] == ["sb"]
