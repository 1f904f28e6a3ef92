from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import checker

from onnxslim_tk.errors import RecipeError
from onnxslim_tk.graph.edit import drop_unused, is_constant
from onnxslim_tk.graph.layers import layers
from onnxslim_tk.graph.model import Model
from onnxslim_tk.measure.observe import observe, observed_shapes
from onnxslim_tk.measure.runtime import Session, running_operators
from onnxslim_tk.packing import pack
from onnxslim_tk.passes.dynamic_int8 import DynamicInt8
from onnxslim_tk.passes.quantize import Quantize
from onnxslim_tk.passes.share import Share
from onnxslim_tk.plan.policy import asked_for
from onnxslim_tk.plan.proposal import Context, Proposal, Refusal
from onnxslim_tk.plan.targets import ONNXRUNTIME_CPU
from onnxslim_tk.plan.work import layer_work
from tests.models import (
    CONTEXT,
    SLOW_FLOATS,
    chain_cnn,
    model_of,
    normal,
    opened,
    outputs,
    outputs_of,
    to_proto,
)
from tests.rows import TOKENS

HEAD = '<ir_version: 8, opset_import: ["": {opset}]>'
W = normal(1, 64, 96, scale=0.2)
V = normal(2, 96, 64, scale=0.2)
BIAS = normal(3, 96)
EAGER = DynamicInt8(least_macs=0)


def graph(
    body: str, shape: str, rank: int, constants: Mapping[str, Any], opset: int = 17
) -> onnx.ModelProto:
    free = ", ".join("ABCDE"[:rank])
    head = HEAD.format(opset=opset)
    return model_of(f"{head} g (float[{shape}] x) => (float[{free}] y) {{ {body} }}", constants)


def dynamic(proto: onnx.ModelProto, context: Context = CONTEXT, method: Any = EAGER) -> Model:
    model = opened(onnx.ModelProto.FromString(proto.SerializeToString()))
    rows = [row for row in method.propose(model, context) if isinstance(row, Proposal)]
    method.apply(model, asked_for(rows), context)
    drop_unused(model)
    return model


def near(proto: onnx.ModelProto, model: Model, x: Any, decibels: float = 35) -> None:
    expected, found = outputs(proto, {"x": x})["y"], outputs_of(model, {"x": x})["y"]
    assert found.shape == expected.shape
    noise = np.square(found - expected).mean() / np.square(expected).mean()
    assert -10 * np.log10(noise) > decibels


CASES: dict[str, tuple[str, str, tuple[int, ...], dict[str, Any]]] = {
    "MatMul": ("y = MatMul(x, w)", "N, 64", (5, 64), {"w": W}),
    "MatMul of rank 3 and bias": (
        "m = MatMul(x, w) y = Add(m, b)",
        "N, 3, 64",
        (2, 3, 64),
        {"w": W, "b": BIAS},
    ),
    "MatMul of a fixed batch and bias": (
        "m = MatMul(x, w) y = Add(b, m)",
        "1, 7, 64",
        (1, 7, 64),
        {"w": W, "b": BIAS},
    ),
    "Gemm": ("y = Gemm(x, w, b)", "N, 64", (5, 64), {"w": W, "b": BIAS}),
    "Gemm without bias": ("y = Gemm(x, w)", "N, 64", (5, 64), {"w": W}),
    "Gemm with transB": ("y = Gemm<transB=1>(x, w, b)", "N, 96", (5, 96), {"w": W, "b": W[:, 0]}),
}


@pytest.mark.parametrize("name", CASES)
def test_a_product_becomes_one_fused_kernel(name: str) -> None:
    body, shape, size, constants = CASES[name]
    proto = graph(body, shape, len(size), constants)
    model = dynamic(proto)
    near(proto, model, normal(9, *size))
    data = to_proto(model).SerializeToString()
    assert set(running_operators(data)) == {"DynamicQuantizeMatMul"}
    # What has no samples has no ranges: other inputs are as good.
    near(proto, model, normal(10, *size, scale=100))


def test_a_bias_is_written_second_where_older_runtimes_fuse_it() -> None:
    body, shape, size, constants = CASES["MatMul of a fixed batch and bias"]
    model = dynamic(graph(body, shape, len(size), constants))
    (add,) = (node for node in model.graph.nodes if node.op == "Add")
    assert [is_constant(tensor) for tensor in add.inputs] == [False, True]


def test_readers_of_one_tensor_share_its_quantization() -> None:
    body = "a = MatMul(x, w) b = Gemm(x, w2) y = Add(a, b)"
    proto = graph(body, "N, 64", 2, {"w": W, "w2": W[::-1].copy()})
    model = dynamic(proto)
    near(proto, model, normal(9, 5, 64))
    kinds = running_operators(to_proto(model).SerializeToString())
    assert kinds == {"DynamicQuantizeLinear": 1, "MatMulIntegerToFloat": 2, "Add": 1}


def test_bodies_quantize_for_themselves() -> None:
    text = f"""{HEAD.format(opset=17)} g (bool c, float[N, 64] x) => (float[A, B] y) {{
        y = If(c)<
            then_branch = yes () => (float[A, B] p) {{ p = MatMul(x, w) }},
            else_branch = no () => (float[A, B] q) {{ q = MatMul(x, u) }}
        >
    }}"""
    proto = model_of(text, {"w": W, "u": -W})
    model = dynamic(proto)
    for case in (True, False):
        feed = {"c": np.array(case), "x": normal(9, 5, 64)}
        expected = outputs(proto, feed)["y"]
        np.testing.assert_allclose(outputs_of(model, feed)["y"], expected, atol=0.15)
    kinds = running_operators(to_proto(model).SerializeToString())
    assert kinds == {"If": 1, "DynamicQuantizeMatMul": 2}


def test_raises_the_operator_set_just_as_far_as_needed() -> None:
    proto = graph("y = MatMul(x, w)", "N, 64", 2, {"w": W}, opset=9)
    model = dynamic(proto)
    assert model.graph.opset == 11
    near(proto, model, normal(9, 5, 64))


@pytest.mark.parametrize("head", ["y = Gemm<transB=1>(h, w)", "t = Transpose(w) y = MatMul(h, t)"])
def test_an_embedding_and_its_head_keep_one_table(head: str) -> None:
    text = f"""{HEAD.format(opset=17)} g (int64[N] x) => (float[A, B] y) {{
        e = Gather(w, x) h = Relu(e) {head}
    }}"""
    proto = model_of(text, {"w": W})
    model = dynamic(proto)
    near(proto, model, np.arange(30))
    result = to_proto(model)
    pack(result)
    assert result.ByteSize() < W.size + 1600
    assert running_operators(result.SerializeToString())["DynamicQuantizeMatMul"] == 1


def test_shared_weights_keep_their_few_values() -> None:
    proto = graph("y = MatMul(x, w)", "N, 64", 2, {"w": W})
    model = dynamic(proto, method=Share(clusters=16))
    shared = to_proto(model)
    context = Context(SLOW_FLOATS, shapes={"y": (5, 96)})
    rows = [row for row in EAGER.propose(model, context) if isinstance(row, Proposal)]
    EAGER.apply(model, rows, context)
    drop_unused(model)
    near(shared, model, normal(9, 5, 64))
    result = to_proto(model)
    pack(result)
    assert result.ByteSize() < W.size / 2 + 1600
    assert set(running_operators(result.SerializeToString())) == {"DynamicQuantizeMatMul"}


def test_weights_that_came_with_a_scale_stay_without_samples() -> None:
    shared = to_proto(dynamic(graph("y = MatMul(x, w)", "N, 64", 2, {"w": W}), method=Share()))
    (row,) = EAGER.propose(opened(shared), CONTEXT)
    assert isinstance(row, Refusal)
    assert row.reason.startswith("quantized already")


REASONS: dict[str, tuple[str, dict[str, Any]]] = {
    "fewer than 65536 multiply-accumulates": ("y = MatMul(x, w)", {"w": W}),
    "the weight is shared with another node": (
        "n = Neg(w) m = MatMul(x, w) y = MatMul(m, n)",
        {"w": normal(0, 300, 300)},
    ),
    "the weight holds values that are not finite": (
        "y = MatMul(x, w)",
        {"w": np.full((300, 300), np.nan, np.float32)},
    ),
    "quantized already": (
        "w = DequantizeLinear(q, s) y = MatMul(x, w)",
        {"q": np.ones((300, 300), np.int8), "s": np.float32(0.1)},
    ),
    "only Gemm and MatMul gain from ranges found in each run": (
        "u = Unsqueeze(x, k) y = Conv(u, w)",
        {"w": normal(0, 400, 300, 1), "k": np.array([2])},
    ),
}


@pytest.mark.parametrize("reason", REASONS)
def test_says_why_a_layer_is_left_alone(reason: str) -> None:
    body, constants = REASONS[reason]
    rank = 3 if "Conv" in body else 2
    model = opened(graph(body, "N, 300", rank, constants))
    found = list(DynamicInt8().propose(model, CONTEXT))
    assert {row.reason for row in found if isinstance(row, Refusal)} == {reason}
    assert not any(isinstance(row, Proposal) for row in found)


def test_an_input_that_was_not_finite_is_left_alone() -> None:
    proto = graph("r = Log(x) y = MatMul(r, w)", "N, 64", 2, {"w": W})
    model = opened(proto)
    feed = {"x": np.zeros((4, 64), np.float32)}
    statistics = observe(model, [feed], DynamicInt8.observes, 0)
    context = Context(SLOW_FLOATS, statistics, shapes=statistics.shapes)
    (row,) = EAGER.propose(model, context)
    assert isinstance(row, Refusal)
    assert row.reason == "what it reads was not finite in a run"


def test_saves_the_bytes_that_it_announces_and_time() -> None:
    proto = graph("m = MatMul(x, w) y = MatMul(m, v)", "N, 64", 2, {"w": W, "v": V})
    model = opened(proto)
    shapes = observed_shapes(model, {"x": normal(0, 32, 64)})
    context = Context(ONNXRUNTIME_CPU, shapes=shapes)
    rows = [row for row in DynamicInt8().propose(model, context) if isinstance(row, Proposal)]
    for layer, row in zip(layers(model), rows, strict=True):
        work = layer_work(layer, shapes)
        assert work is not None
        gained = ONNXRUNTIME_CPU.float_time(work) - ONNXRUNTIME_CPU.dynamic_time(work)
        assert row.cost_saved == pytest.approx(gained)
        assert gained > 0
    DynamicInt8().apply(model, rows, context)
    drop_unused(model)
    result = to_proto(model)
    checker.check_model(result, full_check=True)
    pack(result)
    saved = proto.ByteSize() - result.ByteSize()
    assert abs(saved - sum(row.bytes_saved for row in rows)) < 150


@pytest.mark.parametrize("samples", [True, False])
def test_static_ranges_come_first_where_samples_show_them(samples: bool) -> None:
    proto = graph("m = MatMul(x, w) y = MatMul(m, v)", "N, 64", 2, {"w": W, "v": V})
    model = opened(proto)
    feed = {"x": normal(0, 32, 64)}
    seen = observe(model, [feed], Quantize.observes, 0)
    context = Context(ONNXRUNTIME_CPU, seen if samples else None, shapes=seen.shapes)
    rows = [
        row
        for method in (Quantize(), DynamicInt8())
        for row in method.propose(model, context)
        if isinstance(row, Proposal)
    ]
    chosen = {row.method for row in asked_for(rows)}
    assert chosen == {"quantize" if samples else "dynamic_int8"}


def test_error_expected_is_near_the_error_made() -> None:
    proto = graph("y = MatMul(x, w)", "N, 64", 2, {"w": W})
    model = opened(proto)
    feed = {"x": normal(0, 500, 64)}
    seen = observe(model, [feed], DynamicInt8.observes, 0)
    for context in (CONTEXT, Context(ONNXRUNTIME_CPU, seen)):
        (row,) = EAGER.propose(opened(proto), context)
        assert isinstance(row, Proposal)
        expected = outputs(proto, feed)["y"]
        found = Session(to_proto(dynamic(proto)).SerializeToString()).run(feed)["y"]
        made = np.square(found - expected).sum() / np.square(expected).sum()
        assert made / 3 < row.error < made * 3


def test_samples_steer_the_rounding_of_weights() -> None:
    proto = graph("y = MatMul(x, w)", "N, 32", 2, {"w": normal(5, 32, 64)})
    context = Context(ONNXRUNTIME_CPU, observe(opened(proto), [TOKENS], DynamicInt8.observes, 0))
    expected = outputs(proto, TOKENS)["y"]
    nearest = replace(EAGER, feedback=False)
    steered, rounded = (
        np.square(outputs_of(dynamic(proto, context, method), TOKENS)["y"] - expected).sum()
        for method in (EAGER, nearest)
    )
    assert steered < 0.8 * rounded


def test_convolutions_stay_as_they_are() -> None:
    proto = chain_cnn()
    kinds = {node.op_type for node in to_proto(dynamic(proto)).graph.node}
    assert "Conv" in kinds
    assert "ConvInteger" not in kinds


def test_refuses_a_negative_least() -> None:
    with pytest.raises(RecipeError, match="least macs must be 0 or more, got -1"):
        DynamicInt8(least_macs=-1)
