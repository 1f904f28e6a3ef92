from typing import Any

import numpy as np
import onnx
import pytest

from onnxslim_tk.graph.layers import layers
from onnxslim_tk.kernels.ranges import METHODS
from onnxslim_tk.passes.quantize import Quantize
from tests.models import depthwise_cnn, normal, opened, outputs, outputs_of, to_proto
from tests.quantized import (
    CONV,
    EXPECTED,
    IMAGE,
    context_of,
    feeds_of,
    graph,
    near,
    quantized,
    running,
)
from tests.rows import rows_of


@pytest.mark.parametrize("ranges", ["auto", *METHODS])
def test_any_way_to_pick_ranges_keeps_the_outputs(ranges: Any) -> None:
    feeds = feeds_of(1, 3, 16, 16)
    method = Quantize(ranges=ranges, bias_correction="expected")
    model = quantized(depthwise_cnn(), feeds, method)
    near(depthwise_cnn(), model, feeds[0], 25)
    assert running(model)["QLinearConv"] == 3


def test_activations_that_end_at_zero_have_their_zero_there() -> None:
    model = quantized(depthwise_cnn(), feeds_of(1, 3, 16, 16))
    points = {}
    for layer in layers(model):
        decode = layer.input.inputs[0]
        points[layer.id] = (int(decode.inputs[2].values), float(decode.inputs[1].values) * 255)
    assert points["c2"][0] == points["c3"][0] == 0
    assert max(points["c2"][1], points["c3"][1]) <= 6 + 1e-5
    assert points["c1"][0] > 0


def test_a_big_bias_over_tiny_weights_stays_within_its_bits() -> None:
    constants = CONV | {"w": CONV["w"] * np.float32(1e-8), "b": CONV["b"] * 1000}
    body = "c = Conv(x, w, b) y = Conv(c, v)"
    proto = graph(body, IMAGE, 4, constants)
    feeds = feeds_of(1, 4, 9, 9)
    model = quantized(proto, feeds)
    near(proto, model, feeds[0], 30)
    codes = [t for t in to_proto(model).graph.initializer if t.data_type == onnx.TensorProto.INT32]
    most = max(int(np.abs(onnx.numpy_helper.to_array(t)).max()) for t in codes)
    assert 2**29 < most < 2**30 * 1.001


def test_dead_channels_of_denormal_weights_do_no_harm() -> None:
    weight = CONV["w"].copy()
    weight[3], weight[4], weight[5] = 0, 1e-41, 1e-37
    constants = {**CONV, "w": weight, "b": np.zeros(16, np.float32)}
    proto = graph("c = Conv(x, w, b) y = Conv(c, v)", IMAGE, 4, constants)
    feeds = [{"x": feed["x"] * np.float32(1e-6)} for feed in feeds_of(1, 4, 9, 9)]
    model = quantized(proto, feeds)
    near(proto, model, feeds[0], 25)
    assert running(model)["QLinearConv"] == 2


def test_an_output_that_is_not_finite_has_no_grid() -> None:
    constants = CONV | {"b": np.full(16, np.inf, np.float32)}
    proto = graph("c = Conv(x, w, b) y = Conv(c, v)", IMAGE, 4, constants)
    model = opened(proto)
    rows = rows_of(model, context_of(model, feeds_of(1, 4, 9, 9)), EXPECTED)
    assert {row.setting for row in rows} == {"float"}


@pytest.mark.parametrize("activations", [True, False])
def test_bias_correction_brings_means_closer(activations: bool) -> None:
    # Inputs far from zero and few bits: a rounded weight shifts the mean of its output.
    body = "c = Conv(x, w) r = Relu(c) y = Conv(r, v)"
    proto = graph(body, IMAGE, 4, {"w": CONV["w"], "v": CONV["v"]})
    feeds = [{"x": 5 + normal(k, 1, 4, 9, 9)} for k in range(6)]
    distance = {}
    for correction in ("none", "expected"):
        method = Quantize(activations, weight_bits=7, bias_correction=correction)
        model = quantized(proto, feeds, method)
        shift = [outputs_of(model, f)["y"] - outputs(proto, f)["y"] for f in feeds]
        distance[correction] = float(np.abs(np.mean(shift, axis=(0, 1, 3, 4))).mean())
    assert distance["expected"] < distance["none"] / 2
