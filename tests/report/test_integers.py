from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onnxslim_tk.measure.samples import Samples
from onnxslim_tk.passes import PASSES
from onnxslim_tk.pipeline import Options, optimize, validate
from onnxslim_tk.plan.budget import Budget
from onnxslim_tk.plan.recipe import parse_recipe
from onnxslim_tk.report.integers import Because, Integers, LayerRun, by_kind
from onnxslim_tk.report.outcome import Report
from onnxslim_tk.report.summary import summarize
from tests.models import SLOW_FLOATS, mlp, model_of, normal

HEAD = '<ir_version: 8, opset_import: ["": 17]>'
IMAGES = [{"x": normal(100 + k, 1, 4, 12, 12)} for k in range(12)]
CONV = {
    "w1": normal(0, 16, 4, 3, 3, scale=0.2),
    "w2": normal(1, 16, 16, 3, 3, scale=0.1),
    "ws": normal(2, 16, 1, 1, 1),
    "wt": normal(3, 16, 16, 3, 3, scale=0.1),
}
BRANCHES = f"""{HEAD} g (float[N, 4, 12, 12] x) => (float[N, 16, 10, 10] y, float[A, B, C, D] z) {{
    c1 = Conv(x, w1) r1 = Relu(c1)
    c2 = Conv<pads=[1, 1, 1, 1]>(r1, w2)
    y = Conv<group=16>(c2, ws)
    back = ConvTranspose(r1, wt)
    turned = Transpose<perm=[0, 1, 3, 2]>(back)
    z = MatMul(back, turned)
}}"""


def report_of(
    proto: onnx.ModelProto, feeds: Any, folder: Path, recipe: str = "[quantize, dynamic_int8]"
) -> Report:
    onnx.save(proto, folder / "in.onnx")
    made = parse_recipe(f"stages: {{numbers: {recipe}}}", "test", PASSES)
    samples = None if feeds is None else Samples(feeds)
    options = Options(calibration=samples, target=SLOW_FLOATS)
    return optimize(folder / "in.onnx", folder / "out.onnx", made, options)


def whys(report: Report) -> dict[str, str]:
    return {run.layer: run.why for run in report.integers}


def test_says_of_each_operator_what_keeps_it_in_float(tmp_path: Path) -> None:
    report = report_of(model_of(BRANCHES, CONV), IMAGES, tmp_path)
    assert whys(report) == {
        "c1": "",
        "c2": "",
        "y": "fewer than 64 weights",
        "back": "the runtime has no integer kernel for it",
        "z": "the product of two activations",
    }
    runs = {run.layer: (run.kind, run.meant) for run in report.integers}
    assert runs["c2"] == ("Conv", "int8")
    assert [run.layer for run in report.integers if run.formed] == ["c1", "c2"]
    assert runs["back"] == ("ConvTranspose", "float")
    convolutions, transposed, products = summarize(report).integers
    assert (convolutions.layers, convolutions.meant, convolutions.formed) == (3, 2, 2)
    assert convolutions.reasons == (Because("fewer than 64 weights", 1, ("y",)),)
    assert (transposed.meant, products.meant) == (0, 0)
    assert sum(run.meant == "int8" for run in report.integers) == report.validation.integer_meant


@pytest.mark.parametrize(
    ("recipe", "feeds", "why"),
    [
        ("[{quantize: {activations: false}}]", IMAGES, "the recipe keeps activations in float"),
        ("[quantize]", None, "no samples show its ranges"),
        ("[clean]", IMAGES, "the recipe has no method that writes it in integers"),
    ],
)
def test_what_the_recipe_or_the_samples_lack_is_a_reason(
    recipe: str, feeds: Any, why: str, tmp_path: Path
) -> None:
    proto = model_of(BRANCHES, CONV)
    # Something to win for tidying alone.
    proto.graph.node.add(op_type="Identity", input=["y"], output=["unused"])
    proto.graph.initializer.add().CopyFrom(onnx.numpy_helper.from_array(normal(9, 4000), "nowhere"))
    found = whys(report_of(proto, feeds, tmp_path, recipe))
    assert found["c1"] == found["c2"] == why


def test_products_without_samples_are_dynamic_or_say_why_not(tmp_path: Path) -> None:
    text = f"""{HEAD} g (float[N, 256] x) => (float[N, 64] y) {{
        m = MatMul(x, w1) a = Add(m, b1) r = Relu(a)
        y = MatMul(r, w2)
    }}"""
    constants = {
        "w1": normal(0, 256, 512, scale=0.1),
        "b1": normal(1, 512),
        "w2": normal(2, 512, 64, scale=0.1),
    }
    report = report_of(model_of(text, constants), None, tmp_path)
    assert whys(report) == {"m": "", "y": "no samples, and fewer than 65536 multiply-accumulates"}
    (products,) = summarize(report).integers
    assert (products.kind, products.layers) == ("MatMul, Gemm", 2)
    assert (products.meant, products.formed) == (1, 1)


def test_layers_left_out_and_layers_in_bodies_say_so(tmp_path: Path) -> None:
    body = "h = MatMul(x, w1) r = Relu(h) o = MatMul(r, w2)"
    text = f"""{HEAD} g (bool c, float[N, 64] x) => (float[N, 64] y) {{
        s = MatMul(x, w0)
        t = If(c) <
            then_branch = one () => (float[A, B] o) {{ {body} }},
            else_branch = two () => (float[A, B] p) {{ p = Identity(x) }}
        >
        y = Add(s, t)
    }}"""
    constants = {name: normal(k, 64, 64, scale=0.1) for k, name in enumerate(("w0", "w1", "w2"))}
    feeds = [{"c": np.array(k % 2 == 0), "x": normal(100 + k, 1, 64)} for k in range(12)]
    onnx.save(model_of(text, constants), tmp_path / "in.onnx")
    made = parse_recipe("{stages: {numbers: [quantize]}, exclude: [s]}", "test", PASSES)
    options = Options(calibration=Samples(feeds))
    found = whys(optimize(tmp_path / "in.onnx", tmp_path / "out.onnx", made, options))
    assert found.pop("s") == "left out by the recipe"
    assert set(found.values()) == {"it stands in the body of an If, Loop or Scan"}
    assert len(found) == 2


def test_what_the_budget_forbade_is_said(tmp_path: Path) -> None:
    onnx.save(mlp(), tmp_path / "in.onnx")
    feeds = [{"x": normal(100 + k, 1, 32)} for k in range(12)]
    options = Options(calibration=Samples(feeds), budget=Budget(min_sqnr_db=60))
    report = optimize(tmp_path / "in.onnx", tmp_path / "out.onnx", "balanced", options)
    assert report.steps_back > 0
    given = "given up to hold the budget"
    out = "kept in float: its error in integers was out of proportion"
    # What saved nothing by tidying is the original itself, of which no plan tells.
    assert set(whys(report).values()) <= {"", given, out, "not written for integers"}
    assert all(run.why for run in report.integers if run.meant == "float")


def test_a_file_made_elsewhere_is_counted_all_the_same(tmp_path: Path) -> None:
    report_of(model_of(BRANCHES, CONV), IMAGES, tmp_path)
    options = Options(calibration=Samples(IMAGES))
    report = validate(tmp_path / "in.onnx", tmp_path / "out.onnx", options)
    first = summarize(report).integers[0]
    assert (first.kind, first.layers, first.meant, first.formed) == ("Conv", 3, 2, 2)
    assert first.reasons[0].reason == "not written for integers"


def test_kinds_are_added_up_with_the_commonest_reason_first() -> None:
    runs = [
        LayerRun("a", "Conv", "int8", formed=True),
        *(LayerRun(f"b{k}", "Conv", "float", "small") for k in range(5)),
        LayerRun("c", "Conv", "float", "big"),
        LayerRun("d", "MatMul", "int8", formed=True),
        LayerRun("e", "Gemm", "int8", "odd"),
    ]
    kernels = {"QLinearConv": 1, "MatMulIntegerToFloat": 1}
    small = Because("small", 5, ("b0", "b1", "b2"))
    assert by_kind(runs, kernels) == (
        Integers("Conv", 7, 1, 1, (small, Because("big", 1, ("c",)))),
        Integers("MatMul, Gemm", 2, 2, 1, (Because("odd", 1, ("e",)),)),
    )


QDQ = f"""{HEAD} g (float[N, 64] x) => (float[N, 64] y, float[N, 64] z) {{
    cx = QuantizeLinear(x, s, u) dx = DequantizeLinear(cx, s, u)
    d1 = DequantizeLinear(w1, s, i) d2 = DequantizeLinear(w2, s, i)
    a = MatMul(dx, d1) ca = QuantizeLinear(a, s, u) da = DequantizeLinear(ca, s, u) y = Add(a, da)
    b = MatMul(dx, d2) cb = QuantizeLinear(b, s, u) z = DequantizeLinear(cb, s, u)
}}"""


def test_says_of_each_operator_whether_its_kernel_formed(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    weights = {f"w{k}": generator.integers(-90, 90, (64, 64)).astype(np.int8) for k in (1, 2)}
    grid = {"s": np.float32(0.05), "u": np.uint8(128), "i": np.int8(0)}
    onnx.save(model_of(QDQ, weights | grid), tmp_path / "in.onnx")
    options = Options(calibration=Samples([{"x": normal(k, 2, 64)} for k in range(4)]))
    report = validate(tmp_path / "in.onnx", tmp_path / "in.onnx", options)
    assert [(run.layer, run.meant, run.formed) for run in report.integers] == [
        ("a", "int8", False),
        ("b", "int8", True),
    ]
    assert whys(report) == {
        "a": "the runtime forms no integer kernel of what several operators read",
        "b": "",
    }
    (products,) = summarize(report).integers
    assert (products.meant, products.formed) == (2, 1)
    assert products.reasons[0].examples == ("a",)
