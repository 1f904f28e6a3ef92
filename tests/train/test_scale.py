from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the extra train isn't installed")

from onnxslim_tk.train.module import GraphModule
from onnxslim_tk.train.scale import Scale
from onnxslim_tk.train.write_back import write_back
from tests.models import model_of, normal, opened, outputs_of

CODES = np.random.default_rng(0).integers(-3, 4, (6, 5)).astype(np.int8)
SCALES = np.array([0.1, 0.2, 0.05, 0.3, 0.15], np.float32)


def quantized() -> Any:
    """A product whose input and weight are quantized, each with its scale."""
    text = """<ir_version: 8, opset_import: ["": 17]>
    g (float[n, 6] x) => (float[n, 5] y) {
        q = QuantizeLinear(x, xs, xz)
        d = DequantizeLinear(q, xs, xz)
        w = DequantizeLinear<axis=1>(codes, ws, wz)
        y = MatMul(d, w)
    }"""
    constants = {
        "xs": np.float32(0.02),
        "xz": np.uint8(128),
        "codes": CODES,
        "ws": SCALES,
        "wz": np.zeros(5, np.int8),
    }
    return opened(model_of(text, constants))


def test_scales_are_learnt_only_where_that_is_asked_for() -> None:
    assert set(GraphModule(quantized()).ties) == {"codes"}
    assert set(GraphModule(quantized(), scales=True).ties) == {"codes", "xs", "ws"}


def test_a_scale_that_learnt_nothing_is_what_it_was() -> None:
    scale = Scale(SCALES)
    np.testing.assert_array_equal(scale.stored(), SCALES)
    with torch.no_grad():
        scale.value.fill_(-50.0)
    assert (scale.stored() > 0).all()


def test_the_gradient_is_that_of_numbers_and_of_their_rounding() -> None:
    module = GraphModule(quantized(), scales=True)
    feed = {"x": normal(0, 4, 6)}
    module(feed)["y"].sum().backward()
    gradient = module.parameter("ws").grad.numpy()
    # Weights begin on their grid, so that numbers and rounding make up for each other.
    np.testing.assert_allclose(gradient, 0, atol=1e-4)
    with torch.no_grad():
        module.parameter("codes").add_(0.3 * torch.from_numpy(SCALES))
    module.zero_grad()
    module(feed)["y"].sum().backward()
    assert (module.parameter("ws").grad.abs() > 1e-3).any()
    assert float(module.parameter("xs").grad.abs()) > 0


def test_what_is_written_back_runs_as_it_was_trained() -> None:
    model, feed = quantized(), {"x": normal(1, 4, 6)}
    module = GraphModule(model, scales=True)
    with torch.no_grad():
        for k, parameter in enumerate(module.parameters()):
            parameter.add_(0.1 * torch.from_numpy(np.asarray(normal(k, *parameter.shape))))
    expected = module(feed)["y"].detach().numpy()
    write_back(module, model)
    np.testing.assert_allclose(outputs_of(model, feed)["y"], expected, rtol=1e-5, atol=1e-5)
