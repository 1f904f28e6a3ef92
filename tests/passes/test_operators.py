from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest

from onnxslim_tk.errors import RecipeError
from onnxslim_tk.graph.layers import layers
from onnxslim_tk.graph.model import Model
from onnxslim_tk.graph.operator_changes import inner_taps, smooth_activations
from onnxslim_tk.measure.observe import observe
from onnxslim_tk.passes.operators import Operators
from onnxslim_tk.plan.proposal import Context, Proposal, Refusal
from onnxslim_tk.plan.targets import ONNXRUNTIME_CPU
from tests.models import model_of, normal, opened, operators, outputs, outputs_of, to_proto

SIZE = 16


def images(seed: int, count: int) -> Any:
    """Smooth pictures, whose outer taps say little that inner ones don't."""
    coarse = normal(seed, count, 3, 4, 4).repeat(4, 2).repeat(4, 3)
    return (coarse + 0.1 * normal(seed + 1, count, 3, SIZE, SIZE)).astype(np.float32)


FEEDS = [{"x": images(300 + 2 * k, 4)} for k in range(8)]
UNSEEN = {"x": images(900, 16)}


def mobile(activation: str = "h = HardSwish(c)", kernel: int = 5, pad: int = 2) -> onnx.ModelProto:
    text = f"""<ir_version: 8, opset_import: ["": 17]>
    g (float[N, 3, {SIZE}, {SIZE}] x) => (float[N, 5] y) {{
        c = Conv<pads=[1, 1, 1, 1]>(x, w0, b0)
        {activation}
        d = Conv<pads=[{pad}, {pad}, {pad}, {pad}], group=16, strides=[2, 2]>(h, w1, b1)
        r = Relu(d)
        e = Conv(r, w2, b2)
        p = GlobalAveragePool(e)
        f = Flatten(p)
        y = Gemm<transB=1>(f, w3)
    }}"""
    outer = 0.05 * normal(4, 16, 1, kernel, kernel)
    edge = (kernel - 3) // 2
    outer[..., edge : kernel - edge, edge : kernel - edge] = normal(5, 16, 1, 3, 3, scale=0.4)
    constants = {
        "w0": normal(1, 16, 3, 3, 3, scale=0.3),
        "b0": normal(2, 16),
        "w1": outer.astype(np.float32),
        "b1": normal(6, 16),
        "w2": normal(7, 24, 16, 1, 1, scale=0.3),
        "b2": normal(8, 24),
        "w3": normal(9, 5, 24, scale=0.3),
    }
    return model_of(text, constants)


def context_of(model: Model, method: Operators) -> Context:
    seen = observe(model, FEEDS, method.observes, 0)
    return Context(ONNXRUNTIME_CPU, statistics=seen, feeds=FEEDS, shapes=seen.shapes)


def rows_of(model: Model, method: Operators) -> tuple[list[Proposal], list[Refusal], Context]:
    context = context_of(model, method)
    found = list(method.propose(model, context))
    rows = [row for row in found if isinstance(row, Proposal)]
    return rows, [row for row in found if isinstance(row, Refusal)], context


def error(proto: onnx.ModelProto, model: Model) -> float:
    before, after = outputs(proto, UNSEEN)["y"], outputs_of(model, UNSEEN)["y"]
    return float(np.square(before - after).mean() / np.square(before).mean())


@pytest.mark.parametrize(("kernel", "left"), [(5, 3), (7, 5)])
def test_a_kernel_loses_its_outermost_taps(kernel: int, left: int) -> None:
    proto = mobile(kernel=kernel, pad=kernel // 2)
    model = opened(proto)
    method = Operators(max_error=0.05, activations=False)
    rows, _, context = rows_of(model, method)
    assert [(row.targets, row.setting) for row in rows] == [(("d",), f"{left}x{left}")]
    assert rows[0].macs_saved == 4 * 8 * 8 * 16 * (kernel**2 - left**2)
    method.apply(model, rows, context)
    onnx.checker.check_model(to_proto(model), full_check=True)
    layer = next(layer for layer in layers(model) if layer.id == "d")
    assert layer.shape == (16, 1, left, left)
    assert layer.node.attrs["pads"] == [left // 2] * 4
    assert error(proto, model) < 0.05


def test_the_taps_that_stay_make_up_for_those_that_go() -> None:
    proto = mobile()
    errors = []
    for samples in (True, False):
        model = opened(proto)
        method = Operators(max_error=1.0, activations=False, recover=False)
        rows, _, context = rows_of(model, method)
        method.apply(model, rows, context if samples else replace(context, statistics=None))
        errors.append(error(proto, model))
    assert errors[0] < 0.5 * errors[1]


@pytest.mark.parametrize(
    ("activation", "gone"),
    [
        ("h = HardSwish(c)", {"HardSwish"}),
        ("s = Sigmoid(c) h = Mul(c, s)", {"Sigmoid", "Mul"}),
        ("s = HardSigmoid(c) h = Mul(s, c)", {"HardSigmoid", "Mul"}),
    ],
)
def test_smooth_activations_become_relu(activation: str, gone: set[str]) -> None:
    proto = mobile(activation)
    model = opened(proto)
    method = Operators(max_error=0.5, kernels=False)
    rows, _, context = rows_of(model, method)
    assert [(row.targets, row.setting) for row in rows] == [(("c", "d"), "Relu")]
    assert rows[0].cost_saved > 0
    method.apply(model, rows, context)
    assert not gone & set(operators(model))
    assert operators(model).count("Relu") == 2
    with_refit = error(proto, model)
    plain = opened(proto)
    replace(method, recover=False).apply(plain, rows, context)
    assert with_refit < 0.5 * error(proto, plain)


def test_what_the_outputs_do_not_bear_is_refused() -> None:
    rows, refusals, _ = rows_of(opened(mobile()), Operators(max_error=1e-9))
    assert not rows
    assert {row.target for row in refusals} == {"c", "d"}
    assert all("max_error allows 0.0%" in row.reason for row in refusals)


@pytest.mark.parametrize(
    "kernel",
    ["strides=[2, 2]", 'auto_pad="SAME_UPPER"', "pads=[2, 2, 2, 2], dilations=[3, 3]"],
)
def test_kernels_that_would_read_elsewhere_stay(kernel: str) -> None:
    text = f"""<ir_version: 8, opset_import: ["": 17]>
    g (float[N, 3, 16, 16] x) => (float y) {{ c = Conv<{kernel}>(x, w) y = Relu(c) }}"""
    (layer,) = layers(opened(model_of(text, {"w": normal(1, 4, 3, 5, 5)})))
    assert inner_taps(layer) is None


def test_one_axis_may_shrink_alone() -> None:
    text = """<ir_version: 8, opset_import: ["": 17]>
    g (float[N, 3, 16, 16] x) => (float y) { y = Conv<pads=[0, 2, 0, 2]>(x, w) }"""
    (layer,) = layers(opened(model_of(text, {"w": normal(1, 4, 3, 1, 5)})))
    stays = inner_taps(layer)
    assert stays is not None
    assert stays.tolist() == [[False, True, True, True, False]]


def test_a_reader_in_a_branch_goes_by_its_own_name() -> None:
    text = """<ir_version: 8, opset_import: ["": 17]>
    g (float[N, 8] x, bool flag) => (float[N, 8] y) {
        c = Gemm(x, w) h = HardSwish(c)
        q = If(flag) <
            then_branch = t () => (float[A, B] u) { u = Gemm(h, v) },
            else_branch = e () => (float[C, D] r) { r = Relu(h) }
        >
        y = Gemm(q, v)
    }"""
    model = opened(model_of(text, {"w": normal(1, 8, 8), "v": normal(2, 8, 8)}))
    (found,) = smooth_activations(model)
    assert found.key == ("c", "q/then_branch/u")
    assert set(found.key) <= {layer.id for layer in layers(model)}


def test_an_activation_that_reaches_no_layer_stays() -> None:
    text = """<ir_version: 8, opset_import: ["": 17]>
    g (float[N, 8] x) => (float[N, 8] y) { a = Gemm(x, w) s = Sigmoid(a) y = Mul(a, s) }"""
    assert not list(smooth_activations(opened(model_of(text, {"w": normal(1, 8, 8)}))))


def test_excluded_layers_keep_their_operators() -> None:
    model = opened(mobile())
    method = Operators(max_error=1.0)
    context = replace(context_of(model, method), exclude=("d",))
    assert not list(method.propose(model, context))


def test_without_samples_nothing_is_told() -> None:
    model = opened(mobile())
    context = replace(context_of(model, Operators()), statistics=None, feeds=())
    found = list(Operators().propose(model, context))
    assert {row.reason for row in found if isinstance(row, Refusal)} == {
        "what it would cost takes samples to be told"
    }


def test_a_plan_for_another_model_is_refused() -> None:
    model = opened(mobile())
    with pytest.raises(RecipeError, match="operators: there is nothing to change at 'nothing'"):
        Operators().apply(
            model, [Proposal(("nothing",), "operators", "3x3")], context_of(model, Operators())
        )


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(RecipeError, match="operators: max_error must be 0 or more, got -1"):
        Operators(max_error=-1.0)
