from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from onnxslim_tk.graph.model import Model
from onnxslim_tk.measure.observe import observe
from onnxslim_tk.measure.runtime import running_operators
from onnxslim_tk.measure.samples import Samples
from onnxslim_tk.passes import PASSES
from onnxslim_tk.passes.quantize import Quantize
from onnxslim_tk.pipeline import Options, optimize
from onnxslim_tk.plan.proposal import Context, Proposal, Refusal
from onnxslim_tk.plan.recipe import parse_recipe
from onnxslim_tk.plan.targets import ONNXRUNTIME_CPU, Target
from tests.models import SLOW_FLOATS, model_of, normal, opened, outputs, outputs_of, to_proto

HEAD = '<ir_version: 8, opset_import: ["": 17]>'
PAD = "<pads=[1, 1, 1, 1]>"
Feed = Mapping[str, NDArray[Any]]


def weights(name: str, given: int, read: int, kernel: int, seed: int) -> dict[str, Any]:
    scale = 1.4 / np.sqrt(read * kernel * kernel)
    return {name: normal(seed, given, read, kernel, kernel, scale=scale)}


def network(body: str, channels: int, side: int, constants: Mapping[str, Any]) -> onnx.ModelProto:
    text = f"""{HEAD} g (float[1, {channels}, {side}, {side}] x) => (float[A, B, C, D] y) {{
        {body}
    }}"""
    return model_of(text, constants)


def images(channels: int, side: int) -> list[Feed]:
    return [{"x": normal(50 + k, 1, channels, side, side)} for k in range(4)]


def seen(proto: onnx.ModelProto, feeds: list[Feed], target: Target) -> tuple[Model, Context]:
    model = opened(proto)
    found = observe(model, feeds, Quantize.observes, 0)
    return model, Context(target, statistics=found, feeds=feeds, shapes=found.shapes)


def asked(
    proto: onnx.ModelProto,
    feeds: list[Feed],
    target: Target = ONNXRUNTIME_CPU,
    **settings: Any,
) -> tuple[dict[str, Proposal], dict[str, str]]:
    """The first row for each layer, and reasons."""
    model, context = seen(proto, feeds, target)
    rows: dict[str, Proposal] = {}
    reasons = {}
    for row in Quantize(**settings).propose(model, context):
        if isinstance(row, Refusal):
            reasons[row.target] = row.reason
        else:
            for target_id in row.targets:
                rows.setdefault(target_id, row)
    return rows, reasons


def written(proto: onnx.ModelProto, feeds: list[Feed], target: Target = ONNXRUNTIME_CPU) -> Model:
    """``proto`` with the first row for each layer carried out."""
    model, context = seen(proto, feeds, target)
    method = Quantize(bias_correction="expected")
    first: dict[tuple[str, ...], Proposal] = {}
    for row in method.propose(model, context):
        if isinstance(row, Proposal):
            first.setdefault(row.targets, row)
    method.apply(model, list(first.values()), context)
    return model


def decibels(proto: onnx.ModelProto, model: Model, feed: Feed) -> float:
    expected, found = outputs(proto, feed)["y"], outputs_of(model, feed)["y"]
    noise = np.square(expected.astype(np.float64) - found).mean()
    return float(10 * np.log10(np.square(expected.astype(np.float64)).mean() / noise))


TINY = "a = Conv(x, w0) r = Relu(a) b = Conv(r, w1) s = Relu(b) y = Conv(s, w2)"
SMALL = {**weights("w0", 8, 8, 1, 0), **weights("w1", 8, 8, 1, 1), **weights("w2", 8, 8, 1, 2)}
BIG = {**weights("w0", 64, 64, 3, 0), **weights("w1", 64, 64, 3, 1), **weights("w2", 64, 64, 3, 2)}
PAYS = f"a = Conv{PAD}(x, w0) r = Relu(a) b = Conv{PAD}(r, w1) s = Relu(b) y = Conv{PAD}(s, w2)"


def test_tiny_layers_stay_float_and_say_by_how_much_integers_are_slower() -> None:
    rows, reasons = asked(network(TINY, 8, 4, SMALL), images(8, 4))
    # 64 int8 weights and their scales are no smaller than 64 floats behind what decodes them.
    assert {row.setting for row in rows.values()} <= {"float"}
    assert set(reasons) == set("aby")
    (reason,) = set(reasons.values())
    assert reason.startswith("would run slower in integers: ")
    integer, floating = (float(part.split(" us")[0]) for part in reason[30:].split(" against "))
    assert integer > floating > 0


def test_layers_that_stay_float_get_int8_weights_where_these_are_smaller() -> None:
    many = {**weights("w0", 512, 16, 1, 0), **weights("w1", 64, 512, 1, 1)}
    proto = network("a = Conv(x, w0) r = Sin(a) y = Conv(r, w1)", 16, 1, many)
    rows, reasons = asked(proto, images(16, 1))
    assert {key: row.setting for key, row in rows.items() if key in reasons} == dict.fromkeys(
        reasons, "float"
    )
    assert "a" in reasons
    assert rows["a"].bytes_saved > 0


def test_a_region_that_pays_runs_in_integers_and_says_what_it_saves() -> None:
    rows, reasons = asked(network(PAYS, 64, 16, BIG), images(64, 16))
    assert not reasons
    assert {key: row.setting for key, row in rows.items()} == dict.fromkeys("aby", "integer")
    assert all(row.cost_saved > 20 for row in rows.values())


def test_where_only_faster_is_off_all_run_in_integers() -> None:
    rows, reasons = asked(network(TINY, 8, 4, SMALL), images(8, 4), only_faster=False)
    assert not reasons
    assert {row.setting for row in rows.values()} == {"integer"}
    # Still rows that can be given up for the error they make.
    assert all(row.cost_saved > 0 for row in rows.values())


MIXED = f"""
    a = Conv{PAD}(x, w0) r = Relu(a) b = Conv{PAD}(r, w1) s = Relu(b)
    d = Conv<group=64, pads=[2, 2, 2, 2]>(s, w4) e = Conv<group=64, pads=[2, 2, 2, 2]>(d, w5)
    y = Conv<group=64, pads=[1, 1, 1, 1]>(e, w3)"""
DEPTHWISE = weights("w3", 64, 1, 3, 3) | weights("w4", 64, 1, 5, 4) | weights("w5", 64, 1, 5, 5)
MIX = BIG | DEPTHWISE


def test_a_model_can_be_integers_in_one_part_and_floats_in_the_other() -> None:
    proto, feeds = network(MIXED, 64, 16, MIX), images(64, 16)
    rows, reasons = asked(proto, feeds)
    settings = {key: row.setting for key, row in rows.items()}
    assert settings["a"] == settings["b"] == "integer"
    assert set(reasons) == {"d", "e", "y"}
    assert len(set(reasons.values())) == 1
    model = written(proto, feeds)
    found = running_operators(to_proto(model).SerializeToString())
    assert (found["QLinearConv"], found["Conv"]) == (2, 3)
    assert decibels(proto, model, feeds[0]) > 25


def test_borders_are_counted() -> None:
    between = f"""
        a = Conv{PAD}(x, w0) r = Relu(a)
        d = Conv<group=64, pads=[1, 1, 1, 1]>(r, w3) s = Relu(d) y = Conv{PAD}(s, w1)"""
    rows, reasons = asked(network(between, 64, 16, MIX), images(64, 16))
    assert not reasons
    assert rows["d"].setting == "integer"
    alone = "y = Conv<group=64, pads=[1, 1, 1, 1]>(x, w3)"
    rows, reasons = asked(network(alone, 64, 16, MIX), images(64, 16))
    assert list(reasons) == ["y"]


def test_layers_that_share_a_weight_go_together() -> None:
    shared = f"a = Conv{PAD}(x, w0) r = Sin(a) p = GlobalAveragePool(r) y = Conv{PAD}(p, w0)"
    rows, reasons = asked(network(shared, 64, 16, BIG), images(64, 16))
    assert not reasons
    assert rows["a"] is rows["y"]
    assert rows["a"].setting == "integer"


def test_a_small_product_stays_float_and_a_big_one_does_not() -> None:
    for rows_, size, settings in ((1, 64, {"float"}), (64, 384, {"integer"})):
        text = f"{HEAD} g (float[{rows_}, {size}] x) => (float[A, B] y) {{ y = MatMul(x, w) }}"
        proto = model_of(text, {"w": normal(0, size, size, scale=size**-0.5)})
        feeds: list[Feed] = [{"x": normal(9 + k, rows_, size)} for k in range(4)]
        rows, _ = asked(proto, feeds)
        assert {row.setting for row in rows.values()} == settings


PRODUCTS = {
    "Relu": "g = Gemm(x, w, b) r = Relu(g) y = Sin(r)",
    "Clip": "g = Gemm(x, w, b) r = Clip(g, low, high) y = Sin(r)",
    "Clip from below": "g = Gemm(x, w, b) r = Clip(g, low) y = Sin(r)",
    "Clip from above": "g = Gemm(x, w, b) r = Clip(g, , high) y = Sin(r)",
    "MatMul": "g = MatMul(x, w) r = Relu(g) y = Sin(r)",
    "codes and floats": "g = Gemm(x, w, b) h = Gemm(g, v, b) y = Sub(g, h)",
    "codes and floats of a MatMul": "g = MatMul(x, w) h = MatMul(g, v) y = Sub(g, h)",
    "the model's output": "y = Gemm(x, w, b) z = Gemm(y, v, b)",
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_no_weight_of_an_integer_product_is_decoded_in_every_run(name: str) -> None:
    more = ", float[C, D] z" if "z =" in PRODUCTS[name] else ""
    text = f"{HEAD} g (float[4, 64] x) => (float[A, B] y{more}) {{ {PRODUCTS[name]} }}"
    constants = {
        "w": normal(0, 64, 64, scale=0.12),
        "v": normal(1, 64, 64, scale=0.12),
        "b": normal(2, 64, scale=0.1),
        "low": np.float32(-0.5),
        "high": np.float32(0.75),
    }
    proto = model_of(text, constants)
    feeds: list[Feed] = [{"x": normal(9 + k, 4, 64)} for k in range(4)]
    model = written(proto, feeds, SLOW_FLOATS)
    found = running_operators(to_proto(model).SerializeToString())
    assert "DequantizeLinear" not in found
    assert not {"Gemm", "FusedGemm", "MatMul"} & set(found)
    assert decibels(proto, model, feeds[0]) > 25


def test_the_report_says_why_a_layer_stays_float(tmp_path: Path) -> None:
    onnx.save(network(MIXED, 64, 16, MIX), tmp_path / "in.onnx")
    recipe = parse_recipe("stages: {numbers: [quantize]}", "test", PASSES)
    options = Options(calibration=Samples(images(64, 16) * 3))
    report = optimize(tmp_path / "in.onnx", tmp_path / "out.onnx", recipe, options)
    whys = {run.layer: (run.meant, run.why) for run in report.integers}
    assert whys["a"] == ("int8", "")
    meant, why = whys["d"]
    assert meant == "float"
    assert why.startswith("would run ")
    assert " in integers: " in why
