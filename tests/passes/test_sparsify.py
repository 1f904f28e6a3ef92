import re
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest

from onnxslim_tk.errors import RecipeError
from onnxslim_tk.graph.layers import layers
from onnxslim_tk.graph.model import Model
from onnxslim_tk.measure.observe import observe
from onnxslim_tk.packing import pack
from onnxslim_tk.passes.share import Share
from onnxslim_tk.passes.sparsify import Sparsify
from onnxslim_tk.plan.proposal import Context, Proposal
from onnxslim_tk.recover.masks import WAYS
from tests.graph.topologies import lstm
from tests.models import (
    CONTEXT,
    depthwise_cnn,
    mlp,
    model_of,
    normal,
    opened,
    outputs_of,
    residual_cnn,
    to_proto,
)
from tests.rows import IMAGES, TOKENS, asked, refusals_of, rows_of, seen, silent_cnn

APART = [{"x": TOKENS["x"][k::4]} for k in range(4)]
HEAD = '<ir_version: 8, opset_import: ["": 17]>'


def pruned(model: Model, method: Sparsify, context: Context) -> Model:
    method.apply(model, asked(model, context, method), context)
    return model


def zeros(model: Model) -> dict[str, float]:
    return {layer.id: float(np.mean(layer.weight == 0)) for layer in layers(model)}


def reasons(proto: onnx.ModelProto, method: Sparsify | None = None) -> dict[str, str]:
    return refusals_of(opened(proto), CONTEXT, method or Sparsify())


@pytest.mark.parametrize("build", [mlp, residual_cnn, depthwise_cnn])
@pytest.mark.parametrize("samples", [False, True])
def test_every_layer_gets_the_zeros_asked_for(build: Any, samples: bool) -> None:
    feed = TOKENS if build is mlp else IMAGES
    model = opened(build(0))
    context = seen(model, feed) if samples else CONTEXT
    chosen = asked(model, context, Sparsify(0.6))
    Sparsify(0.6).apply(model, chosen, context)
    outputs_of(model, feed)
    found = zeros(model)
    assert chosen
    for row in chosen:
        assert found[row.targets[0]] == pytest.approx(0.6, abs=0.01)


def test_zeros_have_no_sign() -> None:
    model = opened(mlp())
    pruned(model, Sparsify(), seen(model, TOKENS))
    assert min(zeros(model).values()) > 0
    for layer in layers(model):
        assert not np.signbit(layer.weight[layer.weight == 0]).any()


def test_weights_that_stay_make_up_for_those_that_go() -> None:
    reference = outputs_of(opened(mlp()), TOKENS)["y"]
    noise = {}
    for recover in (True, False):
        model = opened(mlp())
        pruned(model, Sparsify(recover=recover), seen(model, TOKENS))
        noise[recover] = float(np.square(outputs_of(model, TOKENS)["y"] - reference).sum())
    assert noise[True] < 0.2 * noise[False]


def test_the_error_foretold_is_the_error_of_the_layer() -> None:
    text = f"{HEAD} g (float[N, 32] x) => (float[N, 40] y) {{ y = MatMul(x, w) }}"
    # Inputs that go together, and rows enough to tell how.
    rows = normal(5, 4000, 8) @ normal(6, 8, 32) + normal(7, 4000, 32)
    feed = {"x": rows - rows.mean(0)}
    ways: list[tuple[Any, bool, float]] = [
        ("magnitude", True, 0.6),
        ("magnitude", False, 0.6),
        ("alps", True, 0.3),
    ]
    for mask, recover, least in ways:
        model = opened(model_of(text, {"w": normal(4, 32, 40)}))
        method = Sparsify(mask=mask, recover=recover)
        reference, context = outputs_of(model, feed)["y"], seen(model, feed)
        (row,) = asked(model, context, method)
        method.apply(model, [row], context)
        change = outputs_of(model, feed)["y"] - reference
        noise = float(np.square(change).sum() / np.square(reference).sum())
        assert least * row.error < noise <= 1.1 * row.error


def test_wanda_goes_by_the_energies_that_few_samples_show() -> None:
    text = f"{HEAD} g (float[N, 32] x) => (float[N, 40] y) {{ y = MatMul(x, w) }}"
    loud = np.repeat([100.0, 1.0], 16).astype(np.float32)
    feed, weight = {"x": normal(5, 6, 32) * loud}, normal(4, 32, 40)
    weight[:16] *= np.float32(0.1)
    model = opened(model_of(text, {"w": weight}))
    pruned(model, Sparsify(0.5, mask="wanda", recover=False), seen(model, feed))
    (layer,) = layers(model)
    kept = np.count_nonzero(layer.weight, axis=1)
    assert kept[:16].min() > kept[16:].max()


def test_depthwise_and_grouped_layers_are_refitted_in_their_groups() -> None:
    text = f"""{HEAD} g (float[N, 64, 9, 9] x) => (float[N, 64, 9, 9] y) {{
        c = Conv<group=64, pads=[1, 1, 1, 1]>(x, w1)
        y = Conv<group=4>(c, w2)
    }}"""
    weights = {"w1": normal(1, 64, 1, 3, 3), "w2": normal(2, 64, 16, 1, 1)}
    smooth = np.cumsum(normal(3, 4, 64, 9, 9), axis=3)
    noise = {}
    for recover in (True, False):
        model = opened(model_of(text, weights))
        reference = outputs_of(model, {"x": smooth})["y"]
        pruned(model, Sparsify(0.3, recover=recover), seen(model, {"x": smooth}))
        noise[recover] = float(np.square(outputs_of(model, {"x": smooth})["y"] - reference).sum())
    assert noise[True] < 0.7 * noise[False]


def test_milder_rows_follow_with_less_error_and_less_saved() -> None:
    model = opened(mlp())
    rows = rows_of(model, CONTEXT, Sparsify(0.6))
    mine = [row for row in rows if row.targets == rows[0].targets]
    assert [row.setting for row in mine] == [0.6, 0.4, 0.2]
    assert mine[0].error > mine[1].error > mine[2].error
    assert mine[0].bytes_saved > mine[1].bytes_saved > mine[2].bytes_saved > 0


def test_one_threshold_for_all_layers_spares_those_with_few_small_weights() -> None:
    text = f"""{HEAD} g (float[N, 32] x) => (float[N, 32] y) {{
        a = MatMul(x, heavy)
        y = MatMul(a, even)
    }}"""
    heavy = normal(1, 32, 32) ** 3
    even = np.sign(normal(2, 32, 32)) * (1 + 0.1 * normal(3, 32, 32)) * 1e-3
    model = opened(model_of(text, {"heavy": heavy, "even": even.astype("float32")}))
    rows = asked(model, CONTEXT, Sparsify(0.4, scope="global"))
    Sparsify(0.4, scope="global").apply(model, rows, CONTEXT)
    found = zeros(model)
    assert found["a"] == pytest.approx(0.7, abs=0.01)
    assert found["y"] < 0.1
    assert [row.details["sparsity"] for row in rows] == [found[r.targets[0]] for r in rows]


def test_a_layer_of_one_magnitude_is_not_wiped_out_by_the_common_threshold() -> None:
    text = f"""{HEAD} g (float[N, 32] x) => (float[N, 32] y) {{
        a = MatMul(x, w)
        y = MatMul(a, flat)
    }}"""
    flat = np.sign(normal(2, 32, 32)) + np.float32(1e-6) * normal(5, 32, 32)
    model = opened(model_of(text, {"w": normal(1, 32, 32), "flat": flat}))
    pruned(model, Sparsify(0.8, scope="global"), CONTEXT)
    assert 0.85 < zeros(model)["y"] < 0.91


def test_an_embedding_loses_its_small_values() -> None:
    text = f"{HEAD} g (int64[N] i) => (float[N, 16] y) {{ y = Gather(table, i) }}"
    model = opened(model_of(text, {"table": normal(1, 200, 16)}))
    pruned(model, Sparsify(), CONTEXT)
    assert zeros(model) == {"y": 0.5}
    outputs_of(model, {"i": np.arange(5)})


@pytest.mark.parametrize("sparsity", [1.0, -0.1, float("nan")])
def test_a_share_out_of_range_is_an_error(sparsity: float) -> None:
    with pytest.raises(RecipeError, match=r"sparsify: sparsity must be in \[0, 1\), got"):
        Sparsify(sparsity)


def test_an_unknown_scope_is_an_error() -> None:
    with pytest.raises(RecipeError, match="scope must be measured, layer or global, got 'model'"):
        Sparsify(scope="model")  # type: ignore[arg-type]


def test_a_small_layer_is_refused() -> None:
    text = f"{HEAD} g (float[N, 8] x) => (float[N, 31] y) {{ y = MatMul(x, w) }}"
    assert reasons(model_of(text, {"w": normal(1, 8, 31)})) == {"y": "fewer than 256 weights"}


def test_nothing_to_do_and_nothing_to_gain_are_refused() -> None:
    text = f"{HEAD} g (float[N, 64] x) => (float[N, 64] y) {{ y = MatMul(x, w) }}"
    proto = model_of(text, {"w": np.sign(normal(1, 64, 64))})
    assert reasons(proto, Sparsify(0.0)) == {"y": "no weight is to go"}
    assert reasons(proto, Sparsify(0.3)) == {"y": "zeros would not make the packed weight smaller"}


@pytest.mark.parametrize("mask", WAYS)
def test_every_mask_leaves_what_it_was_asked_to(mask: Any) -> None:
    model = opened(mlp())
    pruned(model, Sparsify(0.6, mask=mask), seen(model, TOKENS))
    for share in zeros(model).values():
        assert share == pytest.approx(0.6, abs=0.01) or share == 0


@pytest.mark.parametrize("build", [mlp, residual_cnn])
def test_a_pattern_lies_along_the_input_channels(build: Any) -> None:
    feed = TOKENS if build is mlp else IMAGES
    model = opened(build(0))
    method = Sparsify(pattern="2:4")
    rows = rows_of(model, seen(model, feed), method)
    assert {row.setting for row in rows} == {"2:4"}
    pruned(model, method, seen(model, feed))
    done = {row.targets[0] for row in rows}
    assert done
    for layer in layers(model):
        if layer.id not in done:
            continue
        weight = layer.weight if layer.kind == "Conv" else layer.matrix()[0]
        whole = weight.shape[1] // 4 * 4
        groups = np.moveaxis(weight[:, :whole], 1, -1).reshape(-1, 4)
        assert (np.count_nonzero(groups, axis=1) <= 2).all()
        assert np.count_nonzero(weight[:, whole:]) == weight[:, whole:].size


def test_blocks_of_neighbours_go_together() -> None:
    model = opened(mlp())
    pruned(model, Sparsify(block=4, recover=False), CONTEXT)
    for layer in layers(model):
        if zeros(model)[layer.id]:
            parts = layer.matrix()[0].reshape(-1, 4) == 0
            assert (parts.all(1) | ~parts.any(1)).all()


def test_zeros_go_where_the_outputs_feel_them_least() -> None:
    text = f"""{HEAD} g (float[N, 32] x) => (float[N, 32] y) {{
        a = MatMul(x, loud)
        b = MatMul(x, quiet)
        y = Add(a, b)
    }}"""
    weights = {"loud": 10 * normal(1, 32, 32), "quiet": normal(2, 32, 32)}
    model = opened(model_of(text, weights))
    context = replace(seen(model, TOKENS), feeds=APART)
    pruned(model, Sparsify(scope="measured"), context)
    found = zeros(model)
    assert found["a"] < 0.4
    assert found["b"] > 0.6
    assert sum(found.values()) / 2 == pytest.approx(0.5, abs=0.1)
    assert sum(found.values()) / 2 >= 0.5


def test_a_layer_whose_zeros_others_take_says_so() -> None:
    text = f"""{HEAD} g (float[N, 32] x) => (float[N, 32] y) {{
        a = MatMul(x, loud)
        b = MatMul(x, quiet)
        y = Add(a, b)
    }}"""
    weights = {"loud": 1000 * normal(1, 32, 32), "quiet": 1e-3 * normal(2, 32, 32)}
    model = opened(model_of(text, weights))
    context = replace(seen(model, TOKENS), feeds=APART)
    found = refusals_of(model, context, Sparsify(0.3, scope="measured"))
    assert found == {"a": "the model's outputs feel its weights more than those of other layers"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"mask": "random"},
            "sparsify: mask must be magnitude, wanda, sparsegpt or alps, got 'random'",
        ),
        ({"pattern": "4:2"}, "sparsify: pattern must be N:M with 0 < N < M <= 64, got '4:2'"),
        ({"block": 0}, r"sparsify: block must be in \[1, 64\], got 0"),
        ({"pattern": "2:4", "block": 2}, "sparsify: pattern and block exclude each other"),
    ],
)
def test_a_setting_out_of_range_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Sparsify(**settings)


@pytest.mark.parametrize(("share", "bits"), [(0.5, 3.08), (0.7, 2.28), (0.8, 1.68), (0.9, 1.02)])
def test_zeros_and_codes_of_four_bits_reach_the_ladder(share: float, bits: float) -> None:
    text = f"{HEAD} g (float[N, 512] x) => (float[N, 1024] y) {{ y = MatMul(x, w) }}"
    model = opened(model_of(text, {"w": normal(1, 512, 1024)}))
    pruned(model, Sparsify(share), CONTEXT)
    method = Share(16, effort="quick")
    method.apply(model, asked(model, CONTEXT, method), CONTEXT)
    assert zeros(model)["y"] >= share - 1e-3
    proto = to_proto(model)
    pack(proto)
    # A scale for each channel, nodes and tables come on top.
    extra = 4 * 1024 + 2500
    assert proto.ByteSize() <= 1.05 * bits * 512 * 1024 / 8 + extra


def test_in_turn_layers_make_up_for_those_before_them() -> None:
    proto, unseen = mlp(), {"x": 0.7 * TOKENS["x"][200:]}
    expected, noise = outputs_of(opened(proto), unseen)["y"], {}
    for sequential in (True, False):
        model = opened(proto)
        feeds = [{"x": TOKENS["x"][k : k + 20]} for k in range(0, 200, 20)]
        context = replace(seen(model, {"x": TOKENS["x"][:200]}), feeds=feeds)
        pruned(model, Sparsify(0.8, sequential=sequential), context)
        assert min(zeros(model).values()) == pytest.approx(0.8, abs=0.01)
        noise[sequential] = float(np.square(outputs_of(model, unseen)["y"] - expected).sum())
    assert noise[True] < 0.95 * noise[False]


def test_in_turn_zeros_stay_where_the_mask_has_them() -> None:
    model = opened(residual_cnn())
    context = replace(seen(model, IMAGES), feeds=[IMAGES])
    method = Sparsify(pattern="2:4", sequential=True)
    pruned(model, method, context)
    for layer in layers(model):
        if layer.id in ("c1", "c2", "c3", "c4"):
            by_position = layer.weight.transpose(0, 2, 3, 1).reshape(-1, 4)
            assert (np.count_nonzero(by_position, axis=1) <= 2).all()


def branching() -> onnx.ModelProto:
    text = f"""{HEAD} g (float[N, 32] x, bool flag) => (float[N, 8] y) {{
        a = MatMul(x, w1)
        h = If(flag) <
            then_branch = t () => (float[A, B] p) {{ q = MatMul(a, w2) p = Relu(q) }},
            else_branch = e () => (float[C, D] r) {{ r = Relu(a) }}
        >
        y = MatMul(h, w3)
    }}"""
    return model_of(
        text, {"w1": normal(1, 32, 32), "w2": normal(2, 32, 32), "w3": normal(3, 32, 8)}
    )


@pytest.mark.parametrize(
    ("build", "feed", "hidden"),
    [
        (lstm, {"x": normal(91, 9, 4, 10)}, "o:R"),
        (branching, {"x": normal(92, 20, 32), "flag": np.array(True)}, "h/then_branch/q"),
    ],
)
def test_layers_that_cannot_be_followed_in_turn_are_pruned_all_the_same(
    build: Any, feed: dict[str, Any], hidden: str
) -> None:
    model = opened(build())
    context = replace(seen(model, feed), feeds=[feed] * 2)
    method = Sparsify(0.8, sequential=True)
    chosen = [row.targets[0] for row in asked(model, context, method)]
    assert hidden in chosen
    pruned(model, method, context)
    assert [zeros(model)[name] for name in chosen] == pytest.approx([0.8] * len(chosen), abs=0.01)


@pytest.mark.parametrize("share", [-0.1, 2.0])
def test_a_plan_that_asks_for_more_than_all_is_refused(share: float) -> None:
    row = Proposal(("m1",), "sparsify", 0.5, {"sparsity": share})
    message = f"sparsify: sparsity of 'm1' must be in [0, 1], got {share}"
    with pytest.raises(RecipeError, match=re.escape(message)):
        Sparsify().apply(opened(mlp()), [row], CONTEXT)


def test_a_layer_that_samples_show_nothing_of_may_lose_something() -> None:
    """An error of 0 would say that the rows change no output at all."""
    model = opened(silent_cnn())
    rows = rows_of(model, seen(model, IMAGES), Sparsify())
    assert any("d" in row.targets for row in rows)
    assert min(row.error for row in rows) > 0


def test_a_layer_that_few_samples_fit_is_not_taken_for_one_that_loses_nothing() -> None:
    # Rows of 64 inputs: the first layer sees 36 in each sample, the last one alone.
    text = f"""{HEAD} g (float[1, 36, 64] x) => (float[1, 64] y) {{
        a = MatMul(x, many)
        r = Relu(a)
        m = ReduceMean<axes = [1], keepdims = 0>(r)
        y = MatMul(m, few)
    }}"""
    weights = {"many": normal(1, 64, 64), "few": normal(2, 64, 64)}
    model = opened(model_of(text, weights))
    feeds = [{"x": normal(k, 1, 36, 64)} for k in range(32)]
    statistics = observe(model, feeds, Sparsify.observes, 0)
    context = replace(CONTEXT, statistics=statistics, feeds=feeds)
    pruned(model, Sparsify(scope="measured"), context)
    found = zeros(model)
    assert found["y"] < found["a"]


def test_a_layer_that_is_silent_in_what_is_held_out_is_not_free() -> None:
    text = f"""{HEAD} g (float[N, 32] x, float[N, 32] z) => (float[N, 32] y) {{
        a = MatMul(x, one)
        b = MatMul(z, two)
        y = Add(a, b)
    }}"""
    model = opened(model_of(text, {"one": normal(1, 32, 32), "two": normal(2, 32, 32)}))
    feeds = [{"x": normal(k, 40, 32), "z": normal(50 + k, 40, 32) * (k > 3)} for k in range(16)]
    statistics = observe(model, feeds, Sparsify.observes, 0)
    context = replace(CONTEXT, statistics=statistics, feeds=feeds)
    pruned(model, Sparsify(scope="measured"), context)
    assert zeros(model)["b"] < 0.65
