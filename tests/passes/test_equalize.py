from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from onnxslim_tk.errors import RecipeError
from onnxslim_tk.graph.model import Model
from onnxslim_tk.measure.observe import observe
from onnxslim_tk.passes.equalize import Equalize
from onnxslim_tk.plan.proposal import Context, Proposal, Refusal
from onnxslim_tk.plan.targets import ONNXRUNTIME_CPU
from tests.models import model_of, normal, opened, outputs, outputs_of

HEAD = '<ir_version: 8, opset_import: ["": 17]>'
Array = NDArray[Any]
SPREAD = np.array([1.0, 40.0, 3.0, 0.5], np.float32)


def context_of(model: Model, feeds: list[dict[str, Array]], **more: Any) -> Context:
    found = observe(model, feeds, Equalize.observes, 0)
    return Context(ONNXRUNTIME_CPU, statistics=found, feeds=feeds, shapes=found.shapes, **more)


def feeds_of(*shape: int, count: int = 12) -> list[dict[str, Array]]:
    return [{"x": normal(100 + k, *shape)} for k in range(count)]


def uneven_cnn(activation: str) -> onnx.ModelProto:
    """The first layer's channels differ by a factor of 80, and the second makes up for it."""
    text = f"""{HEAD} g (float[N, 3, 8, 8] x) => (float[N, 4, 4, 4] y) {{
        a = Conv(x, v, b)
        r = {activation}(a)
        p = MaxPool<kernel_shape=[2,2], strides=[2,2]>(r)
        d = Conv<group=4, pads=[1,1,1,1]>(p, k)
        y = Conv(d, w)
    }}"""
    weights = {
        "v": normal(1, 4, 3, 1, 1) * SPREAD.reshape(-1, 1, 1, 1),
        "b": normal(2, 4) * SPREAD,
        "k": normal(3, 4, 1, 3, 3),
        "w": normal(4, 4, 4, 1, 1) / SPREAD.reshape(1, -1, 1, 1),
    }
    return model_of(text, weights)


def normalized() -> onnx.ModelProto:
    text = f"""{HEAD} g (float[N, 5, 8] x) => (float[N, 5, 8] y) {{
        n = LayerNormalization(x, gamma, beta)
        m = MatMul(n, w)
        y = Add(n, m)
    }}"""
    gamma = np.ones(8, np.float32)
    gamma[2] = 60
    weight = normal(1, 8, 8)
    weight[2] /= 60
    return model_of(text, {"gamma": gamma, "beta": normal(3, 8), "w": weight})


def rows_of(model: Model, context: Context, method: Equalize) -> tuple[list[Proposal], list[str]]:
    found = list(method.propose(model, context))
    rows = [row for row in found if isinstance(row, Proposal)]
    return rows, [row.reason for row in found if isinstance(row, Refusal)]


def check_kept(proto: onnx.ModelProto, model: Model, feeds: list[dict[str, Array]]) -> None:
    before, after = outputs(proto, feeds[0])["y"], outputs_of(model, feeds[0])["y"]
    np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-4 * np.abs(before).max())


@pytest.mark.parametrize("activation", ["Relu", "LeakyRelu", "Identity"])
def test_layers_are_balanced_over_what_keeps_positive_factors(activation: str) -> None:
    proto, feeds = uneven_cnn(activation), feeds_of(2, 3, 8, 8)
    model = opened(proto)
    context = context_of(model, feeds)
    rows, _ = rows_of(model, context, Equalize())
    assert ("a", "d") in {row.targets for row in rows}
    assert all(row.error == 0 for row in rows)
    before = context.statistics.channels["p"].peak if context.statistics else np.ones(4)
    Equalize().apply(model, rows, context)
    check_kept(proto, model, feeds)
    after = observe(model, feeds, Equalize.observes, 0).channels["p"].peak
    assert after[1] / after[0] < 0.3 * before[1] / before[0]


@pytest.mark.parametrize("activation", ["HardSwish", "Sigmoid", "Tanh"])
def test_nothing_is_moved_over_what_is_not_homogeneous(activation: str) -> None:
    model = opened(uneven_cnn(activation))
    rows, _ = rows_of(model, context_of(model, feeds_of(2, 3, 8, 8)), Equalize(min_gain_db=0))
    assert all("a" not in row.targets for row in rows)


def test_outliers_behind_a_normalization_go_into_the_products() -> None:
    proto, feeds = normalized(), feeds_of(2, 5, 8)
    model = opened(proto)
    context = context_of(model, feeds)
    (row,), _ = rows_of(model, context, Equalize())
    assert (row.targets, row.setting) == (("m",), "normalization")
    factors = np.array(row.details["factors"])
    assert factors[2] == factors.min() < 0.2 * np.median(factors)
    Equalize().apply(model, [row], context)
    # The residual gets the tensor as it was.
    check_kept(proto, model, feeds)
    assert [node.op for node in model.graph.nodes].count("Mul") == 1


def test_a_tensor_that_is_given_out_keeps_its_scale() -> None:
    text = f"""{HEAD} g (float[N, 5, 8] x) => (float[N, 5, 8] n, float[N, 5, 8] y) {{
        n = LayerNormalization(x, gamma, beta)
        y = MatMul(n, w)
    }}"""
    weights = {"gamma": normal(2, 8) * 9, "beta": normal(3, 8), "w": normal(1, 8, 8)}
    model = opened(model_of(text, weights))
    context = context_of(model, feeds_of(2, 5, 8))
    assert rows_of(model, context, Equalize(min_gain_db=0)) == ([], [])


def test_few_samples_and_small_gains_are_refused_with_a_reason() -> None:
    model = opened(uneven_cnn("Relu"))
    context = context_of(model, feeds_of(2, 3, 8, 8, count=3))
    rows, reasons = rows_of(model, context, Equalize())
    assert rows == []
    assert "fewer than 4 samples cannot show whether it helps" in reasons
    context = context_of(model, feeds_of(2, 3, 8, 8))
    rows, reasons = rows_of(model, context, Equalize(min_gain_db=90))
    assert rows == []
    assert all("dB, less than 90" in reason for reason in reasons)
    plain = Context(ONNXRUNTIME_CPU, shapes=context.shapes)
    assert set(rows_of(model, plain, Equalize())[1]) == {
        "no samples show the ranges of its channels"
    }


def test_excluded_layers_stay_as_they_are() -> None:
    model = opened(normalized())
    context = context_of(model, feeds_of(2, 5, 8), exclude=("m",))
    assert rows_of(model, context, Equalize()) == ([], [])


def test_settings_and_factors_out_of_range_are_refused() -> None:
    with pytest.raises(RecipeError, match="equalize: min_gain_db must not be negative, got -1"):
        Equalize(min_gain_db=-1)
    model = opened(normalized())
    row = Proposal(("m",), "equalize", "normalization", {"factors": [1.0, -2.0]})
    with pytest.raises(RecipeError, match="equalize: 'm' needs a positive factor for each"):
        Equalize().apply(model, [row], context_of(model, feeds_of(2, 5, 8)))
