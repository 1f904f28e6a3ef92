from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onnxslim_tk.errors import RecipeError
from onnxslim_tk.graph.layers import layers
from onnxslim_tk.measure.runtime import Session
from onnxslim_tk.measure.samples import Samples
from onnxslim_tk.passes import PASSES
from onnxslim_tk.passes.quantize import Quantize
from onnxslim_tk.pipeline import Options, optimize
from onnxslim_tk.pipeline.files import load
from onnxslim_tk.plan.proposal import Context, Proposal
from onnxslim_tk.plan.recipe import parse_recipe
from tests.models import (
    SLOW_FLOATS,
    chain_cnn,
    digest,
    mlp,
    model_of,
    normal,
    opened,
    opset_of,
    residual_cnn,
    to_proto,
    with_metadata,
)
from tests.quantized import (
    CONV,
    EXPECTED,
    HEAD,
    context_of,
    feeds_of,
    graph,
    near,
    quantized,
    running,
)
from tests.rows import refusals_of, rows_of


def test_outputs_keep_their_names_wherever_they_come_from() -> None:
    text = f"""{HEAD}
    g (float[1, 4, 9, 9] x) => (float[1, 16, 7, 7] c, float[1, 16, 7, 7] r, float[1, 8, 7, 7] y) {{
        c = Conv(x, w, b)
        r = Relu(c)
        y = Conv(r, v)
    }}"""
    proto = with_metadata(model_of(text, CONV))
    feeds = feeds_of(1, 4, 9, 9)
    model = quantized(proto, feeds)
    near(proto, model, feeds[0], 25)
    assert [value.name for value in to_proto(model).graph.output] == ["c", "r", "y"]
    assert [layer.id for layer in layers(model)] == ["c", "y"]
    notes = {node.op_type: node.doc_string for node in to_proto(model).graph.node}
    assert (notes["Conv"], notes["DequantizeLinear"]) == ("makes y", "")


def test_an_older_model_is_raised_and_an_outdated_one_left() -> None:
    text = """<ir_version: 6, opset_import: ["": 11]>
    g (float[1, 4, 9, 9] x) => (float[1, 8, 7, 7] y) {
        c = Conv(x, w, b)
        r = Relu(c)
        y = Conv(r, v)
    }"""
    proto = model_of(text, CONV)
    feeds = feeds_of(1, 4, 9, 9)
    model = quantized(proto, feeds)
    near(proto, model, feeds[0], 25)
    assert opset_of(model) == 13
    assert running(model)["QLinearConv"] == 2
    for entry in proto.opset_import:
        entry.version = 6
    old = opened(proto)
    before = digest(old)
    assert set(refusals_of(old, Context(SLOW_FLOATS), EXPECTED)) == {"c", "y"}
    assert "below 7 are not supported" in refusals_of(old, Context(SLOW_FLOATS), EXPECTED)["c"]
    assert digest(old) == before


def test_without_samples_there_are_weights_alone() -> None:
    model = opened(chain_cnn())
    rows = rows_of(model, Context(SLOW_FLOATS), EXPECTED)
    assert {row.setting for row in rows} == {"float"}
    integer = Proposal(("c1",), "quantize", "integer")
    with pytest.raises(RecipeError, match="'c1' cannot run in integers without samples"):
        EXPECTED.apply(model, [integer], Context(SLOW_FLOATS))


REASONS: dict[str, tuple[dict[str, Any], str]] = {
    "fewer than 64 weights": ({"w": normal(0, 7, 7)}, "y = MatMul(x, w)"),
    "the weight is shared with another node": (
        {"w": normal(0, 16, 16)},
        "n = Neg(w) m = MatMul(x, w) y = MatMul(m, n)",
    ),
    "the weight holds values that are not finite": (
        {"w": np.where(normal(0, 16, 16) > 2, np.inf, 1).astype(np.float32)},
        "y = MatMul(x, w)",
    ),
    "quantized already": (
        {"q": np.arange(256).reshape(16, 16).astype(np.uint8), "s": np.float32(0.1)},
        "w = DequantizeLinear(q, s) y = MatMul(x, w)",
    ),
    "quantized already, with a zero point": (
        {
            "q": np.ones((16, 16), np.int8),
            "s": np.float32(0.1),
            "z": np.int8(3),
            "i": np.array([[0]]),
        },
        "w = DequantizeLinear(q, s, z) k = Gather(w, i) y = Add(x, k)",
    ),
    "int8 would not make it smaller": ({"w": np.ones((16, 16), np.float32)}, "y = MatMul(x, w)"),
}


@pytest.mark.parametrize("reason", REASONS)
def test_says_why_a_layer_is_left_alone(reason: str) -> None:
    constants, body = REASONS[reason]
    if "Gather" in body:
        constants = constants | {"q": np.ones((64, 16), np.int8)}
    proto = graph(body, "A, B", 3 if "Gather" in body else 2, constants)
    found = refusals_of(opened(proto), Context(SLOW_FLOATS), Quantize(activations=False))
    assert set(found.values()) == {reason}


@pytest.mark.parametrize("activations", [True, False])
def test_what_is_quantized_is_not_quantized_again(activations: bool) -> None:
    method = Quantize(activations=activations, bias_correction="none")
    feeds = feeds_of(1, 3, 16, 16)
    model = quantized(chain_cnn(), feeds if activations else [], method)
    again = context_of(model, feeds) if activations else Context(SLOW_FLOATS)
    assert not rows_of(model, again, method)
    assert refusals_of(model, again, method) == dict.fromkeys(
        ["c1", "c2", "y"], "quantized already"
    )


def test_same_inputs_give_the_same_bytes() -> None:
    for method in (Quantize(), EXPECTED, Quantize(activations=False)):
        found = {
            digest(quantized(residual_cnn(), feeds_of(1, 3, 16, 16), method)) for _ in range(2)
        }
        assert len(found) == 1


def test_excluded_and_tuned_layers_get_what_the_recipe_says() -> None:
    model = opened(mlp())
    overrides = (("g2", {"quantize": False}), ("y", {"quantize": {"activations": False}}))
    context = context_of(model, feeds_of(4, 32), overrides=overrides)
    rows = rows_of(model, context, EXPECTED)
    assert [(row.targets[0], row.setting) for row in rows if row.setting == "integer"] == [
        ("m1", "integer")
    ]
    assert {row.targets[0] for row in rows} == {"m1", "y"}
    context = context_of(model, feeds_of(4, 32), exclude=("*",))
    assert list(EXPECTED.propose(model, context)) == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weight_bits": 1}, "quantize: weight bits must be 2 to 8, got 1"),
        (
            {"ranges": "wide"},
            "quantize: ranges must be auto, minmax, moving-average, percentile, mse, entropy, "
            "got 'wide'",
        ),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        Quantize(**settings)
    assert str(caught.value) == message


def test_expected_errors_and_savings_are_in_the_right_order() -> None:
    model = opened(residual_cnn())
    context = context_of(model, feeds_of(1, 3, 16, 16))
    rows = rows_of(model, context, EXPECTED)
    layer_rows: dict[str, list[Proposal]] = {}
    for row in rows:
        layer_rows.setdefault(row.targets[0], []).append(row)
    assert layer_rows.keys() == {layer.id for layer in layers(model)}
    for integer, float_ in layer_rows.values():
        assert (integer.setting, float_.setting) == ("integer", "float")
        assert 0 < float_.error < integer.error < 1e-2
        assert 0 == float_.cost_saved < integer.cost_saved


def test_channels_that_move_no_code_leave_scales_that_float16_holds(tmp_path: Path) -> None:
    text = f"""{HEAD} g (float[N, 8, 9, 9] x) => (float[N, 72, 9, 9] y) {{
        y = Conv<pads = [1, 1, 1, 1]>(x, w, b)
    }}"""
    weight = normal(0, 72, 8, 3, 3, scale=0.2)
    weight[5] *= 1e-8
    model = model_of(text, {"w": weight, "b": normal(1, 72) + 2})
    onnx.save(model, tmp_path / "in.onnx")
    feeds = [{"x": normal(100 + k, 1, 8, 9, 9)} for k in range(12)]
    recipe = parse_recipe("stages: {numbers: [quantize]}", "test", PASSES)
    options = Options(calibration=Samples(feeds), target=SLOW_FLOATS)
    optimize(tmp_path / "in.onnx", tmp_path / "out.onnx", recipe, options)
    found = load(tmp_path / "out.onnx")
    (layer,) = layers(found)
    scale = layer.scale
    assert scale is not None
    assert np.array_equal(scale, scale.astype(np.float16).astype(np.float32))
    assert not layer.weight[5].any()
    assert np.abs(layer.weight[4]).max() > 0.1
    given, made = (Session(tmp_path / f"{name}.onnx").run(feeds[0])["y"] for name in ("in", "out"))
    error = np.square(given - made).mean(axis=(0, 2, 3))
    assert error[5] <= 2 * np.median(error)
