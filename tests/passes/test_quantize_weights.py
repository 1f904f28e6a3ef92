from typing import Any

import numpy as np
import pytest

from onnxslim_tk.graph.edit import drop_unused
from onnxslim_tk.graph.layers import layers
from onnxslim_tk.packing import pack
from onnxslim_tk.passes.quantize import Quantize
from onnxslim_tk.plan.policy import asked_for
from onnxslim_tk.plan.proposal import Proposal, Refusal
from tests.models import (
    CONTEXT,
    model_of,
    normal,
    opened,
    outputs,
    outputs_of,
    residual_cnn,
    to_proto,
)
from tests.quantized import HEAD, W64, context_of, feeds_of, graph, near, quantized, running
from tests.rows import rows_of


def test_embeddings_are_gathered_as_int8_rows() -> None:
    text = f"""{HEAD} g (int64[N, T] x) => (float[N, T, 16] y) {{ y = Gather(t, x) }}"""
    proto = model_of(text, {"t": normal(0, 200, 16)})
    feed = {"x": np.array([[1, 199, -3], [0, 5, 6]])}
    model = quantized(proto, [])
    near(proto, model, feed, 35)
    assert running(model) == {"Gather": 2, "Cast": 1, "Mul": 1}
    assert to_proto(model).ByteSize() < proto.ByteSize() / 2
    assert model.origins[model.graph.nodes[0].outputs[0].name] == ("y",)


@pytest.mark.parametrize("head", ["y = Gemm<transB=1>(h, w)", "t = Transpose(w) y = MatMul(h, t)"])
def test_an_embedding_and_the_head_that_reads_its_table_share_int8_rows(head: str) -> None:
    text = f"""{HEAD} g (int64[N] x) => (float[N, 64] y) {{
        e = Gather(w, x)
        h = Relu(e)
        {head}
    }}"""
    proto = model_of(text, {"w": W64})
    model = opened(proto)
    (row,) = Quantize().propose(model, CONTEXT)
    assert isinstance(row, Proposal)
    assert row.targets == ("e", "y")
    Quantize().apply(model, [row], CONTEXT)
    drop_unused(model)
    result = to_proto(model)
    feed = {"x": np.arange(64)}
    np.testing.assert_allclose(outputs(result, feed)["y"], outputs(proto, feed)["y"], atol=0.1)
    pack(result)
    assert result.ByteSize() < 64 * 64 + 1200


def test_a_weight_read_twice_is_quantized_for_both_and_stored_once() -> None:
    proto = graph("a = MatMul(x, w) b = Relu(a) y = MatMul(b, w)", "N, 64", 2, {"w": W64})
    model = opened(proto)
    (row,) = Quantize(activations=False).propose(model, CONTEXT)
    assert isinstance(row, Proposal)
    assert row.targets == ("a", "y")
    Quantize().apply(model, [row], CONTEXT)
    drop_unused(model)
    result = to_proto(model)
    pack(result)
    saved = proto.ByteSize() - result.ByteSize()
    assert abs(saved - row.bytes_saved) < 200
    assert saved > 0.7 * proto.ByteSize()


def test_a_weight_that_something_else_reads_too_is_left_alone() -> None:
    proto = graph("a = MatMul(x, w) y = Add(a, w)", "64, 64", 2, {"w": W64})
    (row,) = Quantize().propose(opened(proto), CONTEXT)
    assert isinstance(row, Refusal)
    assert row.reason == "the weight is shared with another node"


def test_weights_alone_are_those_of_the_grid_and_run_in_float() -> None:
    method = Quantize(activations=False, bias_correction="none")
    proto = residual_cnn()
    feeds = feeds_of(1, 3, 16, 16)
    model = quantized(proto, feeds, method)
    assert "QuantizeLinear" not in running(model)
    dense = {layer.id: layer.weight for layer in layers(model)}
    plain = opened(residual_cnn())
    for layer in layers(plain):
        found = dense[layer.id]
        by_channel = np.moveaxis(found - layer.weight, layer.channel_axis, 0)
        steps = np.abs(
            np.moveaxis(layer.weight, layer.channel_axis, 0).reshape(len(by_channel), -1)
        )
        assert (np.abs(by_channel.reshape(len(by_channel), -1)).mean(1) < steps.max(1) / 126).all()
        layer.set_dense(plain, found)
    expected = outputs_of(plain, feeds[0])["y"]
    np.testing.assert_allclose(outputs_of(model, feeds[0])["y"], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bits", [7, 8])
def test_values_on_a_grid_already_are_kept_to_the_bit(bits: int) -> None:
    feeds = feeds_of(1, 3, 16, 16)
    model = opened(residual_cnn())
    kept: dict[str, tuple[Any, Any]] = {}
    for layer in list(layers(model)):
        scale = np.linspace(0.001, 0.002, layer.channels).astype(np.float32)
        values = np.clip(np.rint(layer.weight * 150), -90, 90).astype(np.int8)
        layer.set_scaled(model, values, scale)
        kept[layer.id] = values, scale
    context = context_of(model, feeds)
    method = Quantize(weight_bits=bits, bias_correction="expected")
    rows = [row for row in rows_of(model, context, method) if row.setting == "integer"]
    assert len(rows) == 6
    assert all(row.bytes_saved < 0 for row in rows)
    method.apply(model, rows, context)
    assert {"QLinearConv", "QGemm"} <= set(running(model))
    for layer in layers(model):
        values, scale = kept[layer.id]
        found = layer.stored.values
        np.testing.assert_array_equal(found[:, : values.shape[1]], values)
        assert not found[:, values.shape[1] :].any()
        np.testing.assert_array_equal(layer.scale, scale)


def test_seven_bits_stay_within_seven_bits() -> None:
    method = Quantize(weight_bits=7, bias_correction="expected")
    model = quantized(residual_cnn(), feeds_of(1, 3, 16, 16), method)
    near(residual_cnn(), model, feeds_of(1, 3, 16, 16)[0], 25)
    assert all(np.abs(layer.stored.values).max() <= 63 for layer in layers(model))


def test_a_float16_model_gets_int8_weights_and_stays_in_float16() -> None:
    half = {"w": W64.astype(np.float16), "v": W64[::-1].astype(np.float16)}
    text = f"""{HEAD} g (float16[N, 64] x) => (float16[N, 64] y) {{
        a = MatMul(x, w)
        i = Cast<to=7>(a)
        k = Abs(i)
        e = Gather(v, i)
        s = ReduceMean<axes=[1], keepdims=0>(e)
        y = Add(a, s)
    }}"""
    proto = model_of(text, half)
    model = opened(proto)
    assert [layer.is_half for layer in layers(model)] == [True, True]
    rows = rows_of(model, CONTEXT, Quantize())
    assert [row.setting for row in rows] == ["float", "rows"]
    Quantize().apply(model, asked_for(rows), CONTEXT)
    drop_unused(model)
    result = to_proto(model)
    x = {"x": np.clip(normal(0, 3, 64, scale=2), -5, 5).astype(np.float16)}
    expected = outputs(proto, x)["y"].astype(np.float32)
    found = outputs(result, x)["y"].astype(np.float32)
    np.testing.assert_allclose(found, expected, atol=0.2)
    again = opened(result)
    (matmul,) = layers(again)
    assert (matmul.is_half, matmul.is_dense, matmul.is_multiplied) == (True, False, True)
    assert result.ByteSize() < 0.7 * proto.ByteSize()
