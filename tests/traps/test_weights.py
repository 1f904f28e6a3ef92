"""Traps of weights: values, scales and places that break a quantizer."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from onnxslim_tk.graph.layers import layers
from onnxslim_tk.measure.runtime import Session
from onnxslim_tk.pipeline import load
from tests.models import model_of, normal

from .compressed import Array, compressed, sqnr

IMAGE = (1, 4, 12, 12)
CONSTANTS = {
    "w0": normal(0, 32, 4, 3, 3, scale=0.2),
    "b0": normal(1, 32, scale=0.3),
    "w1": normal(2, 32, 32, 3, 3, scale=0.08),
    "b1": normal(3, 32, scale=0.3),
    "w2": normal(4, 16, 32, 1, 1, scale=0.2),
}


def images(count: int, first: int = 100) -> list[dict[str, Array]]:
    return [{"x": normal(first + k, *IMAGE)} for k in range(count)]


def network(changed: dict[str, Array] | None = None, opset: int = 17) -> onnx.ModelProto:
    text = f"""<ir_version: 7, opset_import: ["": {opset}]>
    g (float[N, 4, 12, 12] x) => (float[N, 16, 12, 12] y) {{
        c0 = Conv<pads=[1, 1, 1, 1]>(x, w0, b0)
        r0 = Relu(c0)
        c1 = Conv<pads=[1, 1, 1, 1]>(r0, w1, b1)
        r1 = Relu(c1)
        y = Conv(r1, w2)
    }}"""
    return model_of(text, CONSTANTS | (changed or {}))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_weight_that_is_not_finite_is_left_alone_and_the_rest_shrinks(
    bad: float, tmp_path: Path
) -> None:
    text = """<ir_version: 8, opset_import: ["": 17]>
    g (float[N, 4, 12, 12] x) => (float[N, 16, 12, 12] y, float[N, 16, 12, 12] z) {
        c0 = Conv<pads=[1, 1, 1, 1]>(x, w0, b0)
        r0 = Relu(c0)
        c1 = Conv<pads=[1, 1, 1, 1]>(r0, w1, b1)
        y = Conv(c1, w2)
        z = Conv(r0, wz)
    }"""
    broken = normal(5, 16, 32, 1, 1, scale=0.2)
    broken[3, 5] = bad
    outcome = compressed(model_of(text, CONSTANTS | {"wz": broken}), images(12), tmp_path)
    assert outcome.reasons == {"z": "the weight holds values that are not finite"}
    assert outcome.runs["QLinearConv"] == 3
    assert outcome.shrunk < 0.5
    fresh = images(4, 300)
    assert outcome.decibels(fresh) > 20
    for before, after in outcome.both(fresh):
        assert np.array_equal(np.isfinite(before["z"]), np.isfinite(after["z"]))
        finite = np.isfinite(before["z"])
        assert finite.mean() > 0.5
        assert sqnr(before["z"][finite], after["z"][finite]) > 20


def test_a_big_bias_over_tiny_weights_does_not_overflow(tmp_path: Path) -> None:
    weights, bias = CONSTANTS["w1"].copy(), CONSTANTS["b1"].copy()
    weights[3] *= 1e-9 / 0.08
    weights[4] = 1e-38
    bias[3:5] = 5
    # A reader that lets the two channels through alone.
    outcome = compressed(network({"w1": weights, "b1": bias}), images(12), tmp_path)
    assert outcome.runs["QLinearConv"] == 3
    assert outcome.decibels(images(4, 300)) > 20


def test_a_big_bias_is_still_there_at_the_output(tmp_path: Path) -> None:
    weights = CONSTANTS["w2"].copy()
    weights[3] *= 1e-9 / 0.2
    proto = network({"w2": weights, "b2": np.full(16, 5, np.float32)})
    proto.graph.node[-1].input.append("b2")
    outcome = compressed(proto, images(12), tmp_path)
    for before, after in outcome.both(images(4, 300)):
        assert np.allclose(before["y"][:, 3], 5)
        assert np.abs(after["y"][:, 3] - 5).max() < 0.1


@pytest.mark.parametrize("value", [0.0, 0.05], ids=["zeros", "one value"])
def test_a_constant_channel_divides_by_nothing(value: float, tmp_path: Path) -> None:
    inner, outer = CONSTANTS["w1"].copy(), CONSTANTS["w2"].copy()
    inner[7], outer[2] = value, value
    outcome = compressed(network({"w1": inner, "w2": outer}), images(12), tmp_path)
    assert outcome.runs["QLinearConv"] == 3
    fresh = images(4, 300)
    assert outcome.decibels(fresh) > 20
    for before, after in outcome.both(fresh):
        assert np.isfinite(after["y"]).all()
        if value == 0:
            assert np.array_equal(before["y"][:, 2], after["y"][:, 2])


def test_a_layer_of_zeros_alone_is_no_trouble(tmp_path: Path) -> None:
    outcome = compressed(
        network({"w1": np.zeros((32, 32, 3, 3), np.float32)}), images(12), tmp_path
    )
    assert outcome.decibels(images(4, 300)) > 20


def test_weights_in_constant_nodes_are_found(tmp_path: Path) -> None:
    """As Paddle's exporter writes them, at an operator set without scales per channel."""
    proto = network(opset=11)
    tensors = list(proto.graph.initializer)
    del proto.graph.initializer[:]
    nodes = [helper.make_node("Constant", [], [t.name], value=t) for t in tensors]
    for k, node in enumerate(nodes):
        proto.graph.node.insert(k, node)
    outcome = compressed(proto, images(12), tmp_path)
    assert outcome.runs["QLinearConv"] == 3
    assert outcome.shrunk < 0.4
    assert outcome.decibels(images(4, 300)) > 20


def test_one_initializer_of_several_layers_stays_one(tmp_path: Path) -> None:
    text = """<ir_version: 8, opset_import: ["": 17]>
    g (float[N, 4, 12, 12] x) => (float[N, 32, 12, 12] y) {
        c0 = Conv<pads=[1, 1, 1, 1]>(x, w0, b0)
        r0 = Relu(c0)
        c1 = Conv<pads=[1, 1, 1, 1]>(r0, w1, b1)
        r1 = Relu(c1)
        c2 = Conv<pads=[1, 1, 1, 1]>(r1, w1, b1)
        r2 = Relu(c2)
        y = Conv<pads=[1, 1, 1, 1]>(r2, w1)
    }"""
    constants = {name: CONSTANTS[name] for name in ("w0", "b0", "w1", "b1")}
    outcome = compressed(model_of(text, constants), images(12), tmp_path)
    assert outcome.runs["QLinearConv"] == 4
    assert outcome.shrunk < 0.4
    by_weight = [id(layer.stored) for layer in layers(load(outcome.result))]
    assert len(by_weight) == 4
    assert len(set(by_weight)) == 2
    assert outcome.decibels(images(4, 300)) > 20


@pytest.mark.parametrize("recipe", ["light", "balanced", "small"])
def test_no_sum_of_two_products_overflows_16_bits(recipe: str, tmp_path: Path) -> None:
    # Processors without VNNI add them so.
    feeds = images(12)
    outcome = compressed(network(), feeds, tmp_path, recipe=recipe)
    codes = [np.asarray(layer.stored.values) for layer in layers(load(outcome.result))]
    assert all(values.dtype == np.int8 for values in codes)
    assert all(2 * 255 * int(np.abs(values.astype(int)).max()) < 2**15 for values in codes)


@pytest.mark.parametrize("ir_version", [3, 8])
def test_initializers_that_are_inputs_are_weights(ir_version: int, tmp_path: Path) -> None:
    proto = network()
    proto.ir_version = ir_version
    for tensor in proto.graph.initializer:
        proto.graph.input.append(
            helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        )
    outcome = compressed(proto, images(12), tmp_path)
    assert outcome.shrunk < 0.4
    assert [port.name for port in Session(outcome.result).inputs] == ["x"]
    assert outcome.decibels(images(4, 300)) > 20
