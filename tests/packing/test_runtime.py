"""The runtime folds every decode when it loads: same outputs, same fused kernels."""

import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from onnxslim_tk.packing import pack, unpack
from onnxslim_tk.packing.inspect import Inspection
from onnxslim_tk.packing.options import Option

from .conftest import Build

CONV = """g (float[1,32,8,8] x) => (float[1,32,8,8] y) {
    xq = QuantizeLinear(x, sx, zx)
    xd = DequantizeLinear(xq, sx, zx)
    w = DequantizeLinear(q, sw)
    c = Conv<pads = [1, 1, 1, 1]>(xd, w)
    cq = QuantizeLinear(c, sy, zx)
    y = DequantizeLinear(cq, sy, zx)
}"""
GEMM = """g (float[N,96] x) => (float[N,768] y) {
    xq = QuantizeLinear(x, sx, zx)
    xd = DequantizeLinear(xq, sx, zx)
    w = DequantizeLinear(q, sw, zw)
    b = DequantizeLinear(bias, sb)
    c = Gemm(xd, w, b)
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


def coded(shape: tuple[int, ...], entries: int, dtype: Any, spread: float = 0) -> NDArray[Any]:
    """Values of an alphabet, equally often or in the shape of a bell."""
    codes = np.arange(entries) - entries // 2
    shares = np.exp(-0.5 * (codes / spread) ** 2) if spread else np.ones(entries)
    generator = np.random.default_rng(entries)
    values = codes if dtype == np.int8 else np.sort(generator.standard_normal(entries))
    return values.astype(dtype)[generator.choice(entries, shape, p=shares / shares.sum())]


def rows_of(shape: tuple[int, ...], entries: int, width: int, dtype: Any) -> NDArray[Any]:
    """Values in rows of a codebook."""
    generator = np.random.default_rng(width)
    book = (40 * generator.standard_normal((entries, width))).astype(dtype)
    return book[generator.integers(0, entries, np.prod(shape) // width)].reshape(shape)


def on_grids(shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
    """Values of four in every row, and many in all."""
    starts = 4 * (np.arange(shape[0]) % 30) - 60
    codes = np.random.default_rng(0).integers(0, 4, shape)
    return (codes + starts.reshape(-1, *[1] * (len(shape) - 1))).astype(dtype)


WEIGHTS: dict[str, Callable[[tuple[int, ...], Any], NDArray[Any]]] = {
    "constant": lambda shape, dtype: np.full(shape, 3, dtype),
    **{
        f"codes-{bits}": partial(lambda shape, dtype, n: coded(shape, n, dtype), n=entries)
        for entries, bits in {
            2: "1",
            3: "1.6",
            4: "2",
            5: "2.6",
            6: "2.67",
            8: "3",
            9: "3.2",
            12: "3.6",
            16: "4",
            18: "4.2",
            24: "4.6",
            32: "5",
            64: "6",
            128: "7",
        }.items()
    },
    "rows-2-8": lambda shape, dtype: rows_of(shape, 256, 2, dtype),
    "rows-4-4": lambda shape, dtype: rows_of(shape, 16, 4, dtype),
    "rows-8-5": lambda shape, dtype: rows_of(shape, 32, 8, dtype),
    "rows-9-4": lambda shape, dtype: rows_of(shape, 16, 9, dtype),
    "books-2": on_grids,
    "tail": lambda shape, dtype: np.where(
        np.indices(shape)[1] < 20, coded(shape, 100, dtype), dtype(0)
    ),
    "bitmask": lambda shape, dtype: sparse_of(shape, 0.6, dtype),
    "gaps": lambda shape, dtype: sparse_of(shape, 0.9, dtype),
    "escapes-5.6": lambda shape, dtype: coded(shape, 200, dtype, spread=12),
    "escapes-6": lambda shape, dtype: coded(shape, 255, dtype, spread=12),
}


def sparse_of(shape: tuple[int, ...], sparsity: float, dtype: Any) -> NDArray[Any]:
    keep = np.random.default_rng(1).random(shape) >= sparsity
    return np.where(keep, coded(shape, 15, dtype), dtype(0))


def only(monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    """Let every tensor be stored in one encoding."""
    module = sys.modules["onnxslim_tk.packing.pack"]
    every = module.options

    def some(facts: Inspection, opset: int) -> Iterator[Option]:
        return (option for option in every(facts, opset) if option.name == encoding)

    monkeypatch.setattr(module, "options", some)


@pytest.mark.parametrize("opset", [9, 11, 13, 21])
@pytest.mark.parametrize("encoding", WEIGHTS)
def test_every_encoding_folds_to_the_plain_weight(
    build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, opset: int, encoding: str
) -> None:
    if opset < {"bitmask": 12, "gaps": 11, "books-2": 11, "escapes-5.6": 11, "escapes-6": 12}.get(
        encoding, 9
    ):
        return
    text = "g (float[N,64] x) => (float[N,288] y) { y = MatMul(x, w) }"
    model = build(text, opset, w=WEIGHTS[encoding]((64, 288), np.float32))
    feeds = {"x": np.random.default_rng(0).standard_normal((5, 64)).astype(np.float32)}
    expected, plain = run(model, feeds, tmp_path)
    only(monkeypatch, encoding)
    assert pack(model)[0].encoding == encoding
    result, folded = run(model, feeds, tmp_path)
    np.testing.assert_array_equal(result, expected)
    assert [n.op_type for n in folded.node] == [n.op_type for n in plain.node] == ["MatMul"]


@pytest.mark.parametrize(
    ("text", "shape", "inputs", "kernel"),
    [(CONV, (32, 32, 3, 3), (1, 32, 8, 8), "QLinearConv"), (GEMM, (96, 768), (5, 96), "QGemm")],
    ids=["conv", "gemm"],
)
@pytest.mark.parametrize("encoding", WEIGHTS)
def test_every_encoding_decodes_to_an_integer_kernel(
    build: Build,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    encoding: str,
    text: str,
    shape: tuple[int, ...],
    inputs: tuple[int, ...],
    kernel: str,
) -> None:
    if encoding == "escapes-6":
        # Read in groups, which so few weights as the convolution's are not.
        text, shape, inputs, kernel = GEMM, (96, 768), (5, 96), "QGemm"
    model = build(
        text,
        q=WEIGHTS[encoding](shape, np.int8),
        sw=np.array(0.01, np.float32),
        sx=np.array(0.02, np.float32),
        sy=np.array(0.05, np.float32),
        zx=np.array(0, np.uint8),
        sb=np.array(0.0002, np.float32),
        zw=np.array(0, np.int8),
        bias=np.arange(768, dtype=np.int32),
    )
    feeds = {"x": np.random.default_rng(0).random(inputs).astype(np.float32)}
    expected, plain = run(model, feeds, tmp_path)
    only(monkeypatch, encoding)
    assert pack(model)[0].encoding == encoding
    result, folded = run(model, feeds, tmp_path)
    np.testing.assert_array_equal(result, expected)
    kinds = [n.op_type for n in folded.node]
    assert kernel in kinds
    assert kinds == [n.op_type for n in plain.node]


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


def test_chains_in_bodies_fold_too(build: Build, tmp_path: Path) -> None:
    model = build(CHOICE)
    branch = next(a.g for a in model.graph.node[0].attribute if a.name == "then_branch")
    branch.initializer.append(numpy_helper.from_array(sparse(15, 0.6), "w"))
    x = np.random.default_rng(0).standard_normal((5, 64)).astype(np.float32)
    feeds = {"c": np.array(True), "x": x}
    expected, _ = run(model, feeds, tmp_path)
    assert pack(model)[0].encoding == "gaps"
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
