import pytest

from onnxslim_tk.graph.layers import layers
from onnxslim_tk.passes.quantize import Quantize
from tests.models import depthwise_cnn, normal, residual_cnn, since
from tests.quantized import CONV, EXPECTED, feeds_of, graph, near, quantized, running


@since("1.20", "flattens in float")
def test_a_residual_network_runs_in_integers_from_end_to_end() -> None:
    feeds = feeds_of(1, 3, 16, 16)
    model = quantized(residual_cnn(), feeds)
    near(residual_cnn(), model, feeds[0], 30)
    # Three input channels have no fast kernel, four have.
    assert running(model) == {
        "QuantizeLinear": 1,
        "Pad": 1,
        "QLinearConv": 5,
        "QLinearAdd": 2,
        "QLinearGlobalAveragePool": 1,
        "Flatten": 1,
        "QGemm": 1,
    }


@pytest.mark.parametrize(("size", "pads"), [(24, 1), (5, 0)])
def test_odd_input_channels_are_filled_up_where_that_pays(size: int, pads: int) -> None:
    body = "c = Conv<pads=[1,1,1,1]>(x, w, b) r = Relu(c) y = Conv(r, v)"
    constants = CONV | {"w": normal(0, 16, 5, 3, 3, scale=0.2)}
    proto = graph(body, f"1, 5, {size}, {size}", 4, constants)
    feeds = feeds_of(1, 5, size, size)
    model = quantized(proto, feeds)
    near(proto, model, feeds[0], 25)
    assert running(model).get("Pad", 0) == pads


@pytest.mark.parametrize("method", [EXPECTED, Quantize()])
def test_depthwise_convolutions_get_channels_for_their_fast_kernel(method: Quantize) -> None:
    body = "c = Conv<pads=[2,2,2,2], group=40>(x, w, b) h = HardSwish(c) y = Conv(h, v)"
    constants = {
        "w": normal(0, 40, 1, 5, 5, scale=0.25),
        "b": normal(1, 40),
        "v": normal(2, 8, 40, 1, 1, scale=0.2),
    }
    proto = graph(body, "1, 40, 12, 12", 4, constants)
    feeds = feeds_of(1, 40, 12, 12)
    model = quantized(proto, feeds, method)
    near(proto, model, feeds[0], 25)
    (widened,) = (layer for layer in layers(model) if layer.groups > 1)
    assert (widened.groups, widened.channels) == (48, 48)
    assert {"Pad": 1, "Slice": 1, "QLinearConv": 2}.items() <= running(model).items()


@since("1.20", "flattens in float")
def test_a_depthwise_network_absorbs_its_clips() -> None:
    feeds = feeds_of(1, 3, 16, 16)
    model = quantized(depthwise_cnn(), feeds)
    near(depthwise_cnn(), model, feeds[0], 25)
    found = running(model)
    assert (found["QLinearConv"], found["QuantizeLinear"], found.get("Clip", 0)) == (3, 1, 0)
