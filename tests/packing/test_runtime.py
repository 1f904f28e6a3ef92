"""The runtime folds every decode when it loads: same outputs, same fused kernels."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from onnxslim_tk.packing import pack, unpack

from .conftest import Build

CONV = """g (float[1,32,8,8] x) => (float[1,32,8,8] y) {
    xq = QuantizeLinear(x, sx, zx)
    xd = DequantizeLinear(xq, sx, zx)
    w = DequantizeLinear<axis = 0>(q, sw)
    c = Conv<pads = [1, 1, 1, 1]>(xd, w)
    cq = QuantizeLinear(c, sy, zx)
    y = DequantizeLinear(cq, sy, zx)
}"""
CHOICE = """g (bool c, float[N,64] x) => (float[N,64] y) {
    y = If (c) <
        then_branch = t () => (float[N,64] p) { p = MatMul(x, w) },
        else_branch = e () => (float[N,64] q) { q = Relu(x) }
    >
}"""


def run(model: onnx.ModelProto, feeds: dict[str, Any], path: Path) -> tuple[NDArray[Any], Any]:
    """Return the first output and the graph that the runtime really runs."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(path / "optimized.onnx")
    options.log_severity_level = 3
    providers = ["CPUExecutionProvider"]
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=providers)
    return session.run(None, feeds)[0], onnx.load(path / "optimized.onnx").graph


def sparse(distinct: int, sparsity: float, dtype: Any = np.float32) -> NDArray[Any]:
    generator = np.random.default_rng(distinct)
    values = (generator.standard_normal(distinct) * 40).astype(dtype)
    picked = values[generator.integers(0, distinct, (64, 64))]
    return np.where(generator.random((64, 64)) < sparsity, dtype(0), picked).astype(dtype)


@pytest.mark.parametrize("opset", [9, 11, 13, 21])
@pytest.mark.parametrize(
    ("distinct", "sparsity", "encoding"),
    [
        (1, 0.0, "constant"),
        (2, 0.0, "codes-1"),
        (4, 0.0, "codes-2"),
        (16, 0.0, "codes-4"),
        (200, 0.0, "codes-8"),
        (15, 0.6, "bitmask"),
        (4096, 0.6, "bitmask"),
        (15, 0.85, "gaps-4"),
        (4096, 0.99, "gaps-8"),
    ],
)
def test_folds_to_the_plain_weight(
    build: Build, tmp_path: Path, opset: int, distinct: int, sparsity: float, encoding: str
) -> None:
    text = "g (float[N,64] x) => (float[N,64] y) { y = MatMul(x, w) }"
    model = build(text, opset, w=sparse(distinct, sparsity))
    feeds = {"x": np.random.default_rng(0).standard_normal((5, 64)).astype(np.float32)}
    expected, plain = run(model, feeds, tmp_path)
    rows = pack(model)
    if opset >= 12:
        assert rows[0].encoding == encoding
    result, folded = run(model, feeds, tmp_path)
    np.testing.assert_array_equal(result, expected)
    assert [n.op_type for n in folded.node] == [n.op_type for n in plain.node]


@pytest.mark.parametrize("dtype", [np.float16, np.int8, np.uint8, np.int32, np.int64])
@pytest.mark.parametrize("distinct", [1, 2, 4, 15, 200])
@pytest.mark.parametrize("sparsity", [0.0, 0.6, 0.95])
def test_every_type_comes_out_exactly(
    build: Build, tmp_path: Path, dtype: Any, distinct: int, sparsity: float
) -> None:
    kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    weight = np.abs(sparse(distinct, sparsity, np.float32)).astype(dtype)[:63, :61].copy()
    model = build("g (int64[M] x) => (float[M,61] y) { y = Gather(w, x) }", w=weight)
    model.graph.output[0].type.tensor_type.elem_type = kind
    rows = pack(model)
    assert rows or (distinct == 200 and sparsity == 0)
    result, _ = run(model, {"x": np.arange(63)}, tmp_path)
    assert result.tobytes() == weight.tobytes()


@pytest.mark.parametrize("sparsity", [0.0, 0.6, 0.9])
def test_codes_decode_to_an_integer_convolution(
    build: Build, tmp_path: Path, sparsity: float
) -> None:
    generator = np.random.default_rng(0)
    codes = generator.integers(-7, 8, (32, 32, 3, 3)).astype(np.int8)
    codes[generator.random(codes.shape) < sparsity] = 0
    model = build(
        CONV,
        q=codes,
        sw=np.linspace(0.01, 0.02, 32, dtype=np.float32),
        sx=np.array(0.02, np.float32),
        sy=np.array(0.05, np.float32),
        zx=np.array(0, np.uint8),
    )
    feeds = {"x": generator.random((1, 32, 8, 8)).astype(np.float32)}
    expected, plain = run(model, feeds, tmp_path)
    assert pack(model)[0].name == "q"
    result, folded = run(model, feeds, tmp_path)
    np.testing.assert_array_equal(result, expected)
    kinds = [n.op_type for n in folded.node]
    assert "QLinearConv" in kinds
    assert kinds == [n.op_type for n in plain.node]


def test_chains_in_bodies_fold_too(build: Build, tmp_path: Path) -> None:
    model = build(CHOICE)
    branch = next(a.g for a in model.graph.node[0].attribute if a.name == "then_branch")
    branch.initializer.append(numpy_helper.from_array(sparse(15, 0.6), "w"))
    x = np.random.default_rng(0).standard_normal((5, 64)).astype(np.float32)
    feeds = {"c": np.array(True), "x": x}
    expected, _ = run(model, feeds, tmp_path)
    assert pack(model)[0].encoding == "bitmask"
    result, folded = run(model, feeds, tmp_path)
    np.testing.assert_array_equal(result, expected)
    assert [n.op_type for n in folded.node] == ["If"]
    branch = next(a.g for a in folded.node[0].attribute if a.name == "then_branch")
    assert [n.op_type for n in branch.node] == ["MatMul"]


def test_gives_the_right_answer_without_folding(build: Build) -> None:
    text = "g (float[N,64] x) => (float[N,64] y) { y = MatMul(x, w) }"
    model = build(text, w=sparse(15, 0.85))
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    providers = ["CPUExecutionProvider"]
    feeds = {"x": np.eye(64, dtype=np.float32)}
    outputs = []
    for change in (pack, unpack):
        change(model)
        data = model.SerializeToString()
        session = onnxruntime.InferenceSession(data, options, providers=providers)
        outputs.append(session.run(None, feeds)[0])
    np.testing.assert_array_equal(outputs[0], outputs[1])
