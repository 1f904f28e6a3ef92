from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest

from onnxslim_tk.errors import RecipeError
from onnxslim_tk.graph.layers import Layer, layers
from onnxslim_tk.graph.model import Model, to_stored
from onnxslim_tk.measure.observe import observe
from onnxslim_tk.measure.runtime import running_operators
from onnxslim_tk.passes.factorize import Factorize
from onnxslim_tk.plan.proposal import Proposal
from onnxslim_tk.recover.forms import FORMS, gain_of
from tests.models import (
    CONTEXT,
    Array,
    mlp,
    model_of,
    normal,
    opened,
    operators,
    outputs_of,
    to_proto,
)
from tests.rows import IMAGES, asked, refusals_of, rows_of, seen, silent_cnn

FINE = replace(CONTEXT, target=replace(CONTEXT.target, channel_step=4))
ANY = Factorize(max_error=1.0)
CALLS: dict[str, tuple[str, tuple[int, ...], tuple[int, ...]]] = {
    "conv": ("Conv<pads=[1, 2, 0, 1], strides=[2, 1], dilations=[1, 2]>", (6, 12), (20, 12, 3, 3)),
    "striding": ("Conv<pads=[1, 1, 1, 1], strides=[2, 2]>", (6, 12), (20, 12, 3, 3)),
    "valid": ('Conv<auto_pad="VALID">', (6, 12), (20, 12, 3, 2)),
    "pointwise": ("Conv", (6, 24), (20, 24, 1, 1)),
    "line": ("Conv<pads=[2, 2]>", (6, 12), (20, 12, 5)),
    "gemm": ("Gemm", (300, 32), (32, 20)),
    "turned": ("Gemm<transB=1>", (300, 32), (20, 32)),
    "matmul": ("MatMul", (300, 32), (32, 20)),
}
SPLITS = [(name, "channel") for name in CALLS] + [
    (name, "spatial") for name in ("conv", "striding", "valid")
]


def model_with(name: str, opset: int = 17, weight: Array | None = None) -> Model:
    """A model of one layer."""
    call, shape, weight_shape = CALLS[name]
    spatial = ["H", "W"][: len(weight_shape) - 2]
    dims, given = (", ".join(["N", c, *spatial]) for c in (str(shape[1]), "C"))
    if spatial:
        given = ", ".join(["N", "C", *(f"o{s}" for s in spatial)])
    bias = "" if name == "matmul" else ", b"
    text = f"""<ir_version: 8, opset_import: ["": {opset}]>
    g (float[{dims}] x) => (float[{given}] y) {{ y = {call}(x, w{bias}) }}"""
    values = normal(4, *weight_shape) if weight is None else weight
    return opened(model_of(text, {"w": values, "b": normal(5, 20)}))


def feed_of(name: str) -> dict[str, Array]:
    """Inputs that go together, over space and over channels."""
    _, shape, weight = CALLS[name]
    space = [9] * (len(weight) - 2)
    ones = [1] * len(space)
    mixed = normal(6, *shape, *space) + 3 * normal(7, shape[0], 1, *space)
    return {"x": mixed + 2 * normal(8, *shape, *ones) if space else mixed}


def row_of(kind: str, rank: int) -> Proposal:
    return Proposal(("y",), "factorize", 0.5, {"kind": kind, "rank": rank})


def product(first: Layer, second: Layer) -> Array:
    """The dense weight that two layers stand for."""
    if first.kind != "Conv":
        whole: Array = second.matrix()[0] @ first.matrix()[0]
        return whole
    if second.weight.size == second.shape[0] * second.shape[1]:
        flat = second.weight.reshape(second.shape[:2]) @ first.weight.reshape(first.shape[0], -1)
        return np.asarray(flat.reshape(-1, *first.shape[1:]))
    whole = np.einsum("rci,nrj->ncij", first.weight[..., 0], second.weight[:, :, 0])
    return np.asarray(whole)


def reasons(proto: onnx.ModelProto, method: Factorize = ANY) -> dict[str, str]:
    return refusals_of(opened(proto), FINE, method)


@pytest.mark.parametrize(("name", "kind"), SPLITS)
@pytest.mark.parametrize("samples", [False, True])
def test_the_model_computes_the_low_rank_product(name: str, kind: str, samples: bool) -> None:
    model, feed = model_with(name), feed_of(name)
    ANY.apply(model, [row_of(kind, 5)], seen(model, feed, FINE) if samples else FINE)
    given = outputs_of(model, feed)["y"]
    first, second = layers(model)
    dense = model_with(name)
    (layer,) = layers(dense)
    whole = product(first, second)
    layer.set_dense(dense, whole if layer.kind == "Conv" else layer.from_matrix(whole[None]))
    bias = second.bias({"y"})
    if samples and bias is not None and layer.kind != "MatMul":
        layer.node.inputs[2].values = np.asarray(bias.values)
    expected = outputs_of(dense, feed)["y"]
    if samples and layer.kind == "MatMul":
        assert operators(model) == ["MatMul", "MatMul", "Add"]
        given, expected = given - given.mean(0), expected - expected.mean(0)
    np.testing.assert_allclose(given, expected, atol=2e-3)


@pytest.mark.parametrize(("name", "kind"), SPLITS)
def test_full_rank_is_exact(name: str, kind: str) -> None:
    model, feed = model_with(name), feed_of(name)
    expected = outputs_of(model, feed)["y"]
    (layer,) = layers(model)
    sides = layer.matrix().shape[1:]
    if kind == "spatial":
        rows, channels, height, width = layer.shape
        sides = rows * width, channels * height
    ANY.apply(model, [row_of(kind, min(sides))], seen(model, feed, FINE))
    np.testing.assert_allclose(outputs_of(model, feed)["y"], expected, atol=2e-3)


def test_a_gemm_of_an_old_opset_becomes_a_matmul_and_a_gemm() -> None:
    for name in ("gemm", "turned"):
        model = model_with(name, opset=9)
        expected = outputs_of(model, feed_of(name))["y"]
        ANY.apply(model, [row_of("channel", 20)], FINE)
        assert operators(model) == ["MatMul", "Gemm"]
        np.testing.assert_allclose(outputs_of(model, feed_of(name))["y"], expected, atol=1e-3)


@pytest.mark.parametrize("name", ["conv", "pointwise", "gemm", "matmul"])
def test_samples_make_the_split_better(name: str) -> None:
    noise = []
    for samples in (True, False):
        model, feed = model_with(name), feed_of(name)
        reference = outputs_of(model, feed)["y"]
        context = seen(model, feed, FINE) if samples else FINE
        ANY.apply(model, asked(model, context, ANY), context)
        noise.append(float(np.square(outputs_of(model, feed)["y"] - reference).sum()))
    assert noise[0] < 0.7 * noise[1]


@pytest.mark.parametrize("name", ["conv", "matmul"])
def test_the_error_foretold_is_the_error_of_the_layer(name: str) -> None:
    model, feed = model_with(name), feed_of(name)
    if name == "conv":
        (layer,) = layers(model)
        layer.node.inputs.pop()
    over = (0, *range(2, feed["x"].ndim))
    feed["x"] = feed["x"] - feed["x"].mean(axis=over, keepdims=True)
    reference, context = outputs_of(model, feed)["y"], seen(model, feed, FINE)
    (row,) = asked(model, context, ANY)
    ANY.apply(model, [row], context)
    noise = np.square(outputs_of(model, feed)["y"] - reference).sum()
    assert noise / np.square(reference).sum() == pytest.approx(row.error, rel=0.1)


def test_the_weights_left_are_no_more_than_asked_for() -> None:
    for name in CALLS:
        model = model_with(name)
        size = sum(layer.size for layer in layers(model))
        rows = asked(model, FINE, ANY)
        ANY.apply(model, rows, FINE)
        left = sum(layer.size for layer in layers(model))
        assert left <= 0.5 * size
        assert rows[0].details["rank"] % 4 == 0 or rows[0].details["rank"] < 4


def test_a_convolution_is_split_along_the_better_axis() -> None:
    columns, rows = normal(1, 20, 4, 3), normal(2, 4, 12, 3)
    spatial = np.einsum("nrj,rci->ncij", columns, rows)
    channel = (normal(3, 20, 3) @ normal(4, 3, 108)).reshape(20, 12, 3, 3)
    for weight, kind in ((spatial, "spatial"), (channel, "channel")):
        (row,) = asked(model_with("conv", weight=weight.astype("float32")), FINE, ANY)
        assert row.details["kind"] == kind
        assert row.error < 1e-9


def test_only_the_kinds_asked_for_are_tried() -> None:
    for kind in ("channel", "spatial"):
        (row,) = asked(model_with("valid"), FINE, replace(ANY, kinds=(kind,)))
        assert row.details["kind"] == kind


def test_milder_rows_follow_with_less_error_and_less_saved() -> None:
    model = model_with("conv")
    context = seen(model, feed_of("conv"), FINE)
    rows = rows_of(model, context, ANY)
    assert [row.setting for row in rows[:2]] == [0.5, 0.625]
    assert len({row.details["kind"] for row in rows}) == 1
    errors, saved = [r.error for r in rows], [r.bytes_saved for r in rows]
    assert errors == sorted(errors, reverse=True)
    assert saved == sorted(saved, reverse=True)


def test_multiply_accumulates_saved_are_those_of_the_shapes_seen() -> None:
    model, feed = model_with("striding"), feed_of("striding")
    context = seen(model, feed, FINE)
    before = sum(layer.macs(context.shapes) or 0 for layer in layers(model))
    for kinds in (("channel",), ("spatial",)):
        method = replace(ANY, keep=0.4, kinds=kinds)
        twin = model.copy()
        (row,) = asked(twin, context, method)
        method.apply(twin, [row], context)
        shapes = observe(twin, [feed], frozenset(), 0).shapes
        after = sum(layer.macs(shapes) or 0 for layer in layers(twin))
        assert row.macs_saved == before - after


def test_the_layer_keeps_its_name_and_the_first_factor_answers_to_it() -> None:
    model = opened(mlp())
    ANY.apply(model, asked(model, FINE, ANY), FINE)
    ids = [layer.id for layer in layers(model)]
    assert ids == ["m1:a", "m1", "g2:a", "g2", *ids[4:]]
    names = {layer.id: layer.names for layer in layers(model)}
    assert "m1" in names["m1:a"]
    assert to_proto(model).graph.output[0].name == "y"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"keep": 1.2}, r"factorize: keep must be in \(0, 1\], got 1.2"),
        ({"keep": 0.0}, r"factorize: keep must be in \(0, 1\], got 0.0"),
        ({"kinds": ()}, r"factorize: kinds must be of channel, spatial, .*, got \(\)"),
        (
            {"kinds": ("svd",)},
            "factorize: kinds must be of channel, spatial, tucker, cp, sep",
        ),
        ({"pays": "money"}, "factorize: pays must be latency or bytes, got 'money'"),
        ({"max_error": -1.0}, "factorize: max_error must be 0 or more, got -1.0"),
    ],
)
def test_a_setting_out_of_range_is_an_error(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Factorize(**settings)


HEAD = '<ir_version: 8, opset_import: ["": 17]>'


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        ((15, 17), "fewer than 256 weights"),
        ((1, 300), "a 1 x 300 matrix has nothing to factor"),
    ],
)
def test_a_matrix_is_refused_with_a_reason(shape: tuple[int, int], reason: str) -> None:
    rows, columns = shape
    text = f"{HEAD} g (float[N, {rows}] x) => (float[N, {columns}] y) {{ y = MatMul(x, w) }}"
    assert reasons(model_of(text, {"w": normal(1, *shape)})) == {"y": reason}


@pytest.mark.parametrize(
    ("body", "shape", "reason"),
    [
        ("Conv<group=2>", (32, 8, 3, 3), "a grouped convolution is not factored"),
        ("Conv<group=16>", (32, 1, 3, 3), "a grouped convolution is not factored"),
        ("ConvTranspose", (16, 32, 3, 3), "a transposed convolution is not factored"),
        ("Conv", (1, 16, 5, 5), "a 5x5 kernel of 1 channels has nothing to factor"),
    ],
)
def test_a_convolution_is_refused_with_a_reason(
    body: str, shape: tuple[int, ...], reason: str
) -> None:
    text = f"{HEAD} g (float[N, 16, 8, 8] x) => (float[N, C, H, W] y) {{ y = {body}(x, w) }}"
    method = replace(ANY, kinds=("channel",))
    assert reasons(model_of(text, {"w": normal(1, *shape)}), method) == {"y": reason}


def test_an_embedding_is_refused_where_time_is_to_be_saved() -> None:
    text = f"{HEAD} g (int64[N] i) => (float[N, 16] y) {{ y = Gather(table, i) }}"
    proto = model_of(text, {"table": normal(1, 200, 16)})
    assert reasons(proto)["y"].startswith("an embedding takes no time to save; pays: bytes")


def test_a_split_that_the_target_does_not_gain_from_is_refused() -> None:
    found = reasons(to_proto(model_with("matmul")), Factorize(1.0, max_error=1.0))
    assert found["y"].startswith("two layers would take ")
    assert found["y"].endswith("the target gains only up to 75%")


def test_a_split_that_would_miss_too_much_is_refused() -> None:
    found = reasons(to_proto(model_with("conv")), Factorize(max_error=0.01))
    assert "max_error allows 1%" in found["y"]


def test_a_weight_that_packs_well_already_is_refused() -> None:
    text = f"{HEAD} g (float[N, 64] x) => (float[N, 64] y) {{ y = MatMul(x, w) }}"
    found = reasons(model_of(text, {"w": np.sign(normal(1, 64, 64))}))
    assert found == {"y": "the 2 factors would not be smaller once packed"}


@pytest.mark.parametrize("kind", ["tucker", "cp"])
@pytest.mark.parametrize("name", ["conv", "striding", "valid"])
def test_three_convolutions_compute_the_product_of_three_factors(name: str, kind: str) -> None:
    model, feed = model_with(name), feed_of(name)
    ANY.apply(model, [row_of(kind, 5)], FINE)
    assert operators(model) == ["Conv", "Conv", "Conv"]
    first, core, last = (layer.weight for layer in layers(model))
    given = outputs_of(model, feed)["y"]
    if kind == "tucker":
        whole = np.einsum("nr,rsij,sc->ncij", last[..., 0, 0], core, first[..., 0, 0])
    else:
        whole = np.einsum("nr,rij,rc->ncij", last[..., 0, 0], core[:, 0], first[..., 0, 0])
    dense = model_with(name)
    next(layers(dense)).set_dense(dense, whole)
    np.testing.assert_allclose(given, outputs_of(dense, feed)["y"], atol=2e-3)


@pytest.mark.parametrize("kind", ["tucker", "cp", "separable", "channel", "spatial", "blocks"])
def test_multiply_accumulates_of_every_form_are_those_of_a_run(kind: str) -> None:
    model, feed = model_with("striding"), feed_of("striding")
    context = seen(model, feed, FINE)
    (layer,) = layers(model)
    before = layer.macs(context.shapes) or 0
    _, saved, _ = gain_of(layer, FORMS[kind].steps(layer, 4), context.shapes, FINE.target)
    ANY.apply(model, [row_of(kind, 4)], context)
    shapes = observe(model, [feed], frozenset(), 0).shapes
    assert saved == before - sum(part.macs(shapes) or 0 for part in layers(model))


@pytest.mark.parametrize("name", ["conv", "striding", "valid", "line"])
def test_a_separable_convolution_filters_each_channel_and_mixes_all(name: str) -> None:
    shape = CALLS[name][2]
    taps = normal(1, 12, 2, *shape[2:])
    # Two filters a channel are what the weight is made of.
    whole = np.einsum("ncr,cr...->nc...", normal(2, 20, 12, 2), taps).astype(np.float32)
    model, feed = model_with(name, weight=whole), feed_of(name)
    expected = outputs_of(model, feed)["y"]
    ANY.apply(model, [row_of("separable", 2)], seen(model, feed, FINE))
    first, second = layers(model)
    assert first.groups == 12
    assert first.shape == (24, 1, *shape[2:])
    assert set(second.shape[2:]) == {1}
    np.testing.assert_allclose(outputs_of(model, feed)["y"], expected, rtol=1e-2, atol=2e-2)


def test_one_filter_a_channel_is_fast_enough_for_the_target() -> None:
    text = f"{HEAD} g (float[N, 64, 32, 32] x) => (float y) {{ y = Conv<pads=[1,1,1,1]>(x, w) }}"
    model = opened(model_of(text, {"w": normal(1, 64, 64, 3, 3)}))
    context = seen(model, {"x": normal(2, 1, 64, 32, 32)})
    row = rows_of(model, context, Factorize(keep=0.2, kinds=("separable",), max_error=1.0))[0]
    assert row.details["rank"] == 1
    assert row.cost_saved > 0


def test_blocks_become_a_convolution_in_groups() -> None:
    whole = np.zeros((20, 12, 3, 3), np.float32)
    for k in range(2):
        whole[10 * k : 10 * k + 10, 6 * k : 6 * k + 6] = normal(k, 10, 6, 3, 3)
    model, feed = model_with("striding", weight=whole), feed_of("striding")
    expected = outputs_of(model, feed)["y"]
    (row,) = asked(model, FINE, replace(ANY, kinds=("blocks",)))
    assert row.details["rank"] == 2
    assert row.error < 1e-9
    ANY.apply(model, [row], FINE)
    (layer,) = layers(model)
    assert layer.groups == 2
    np.testing.assert_allclose(outputs_of(model, feed)["y"], expected, atol=1e-4)


@pytest.mark.parametrize("kind", ["toeplitz", "hankel", "circulant", "kronecker", "channel"])
@pytest.mark.parametrize("name", ["conv", "gemm", "turned", "matmul"])
def test_what_is_only_stored_in_few_numbers_is_whole_again_at_load(name: str, kind: str) -> None:
    model, feed = model_with(name), feed_of(name)
    row = replace(row_of(kind, 3), details={"kind": kind, "rank": 3, "stored": True})
    ANY.apply(model, [row], FINE)
    given = outputs_of(model, feed)["y"]
    dense = model_with(name)
    (layer,) = layers(dense)
    form = FORMS[kind]
    whole = form.product(layer, form.split(layer, 3, None))
    layer.set_dense(dense, layer.from_matrix(whole[None]))
    np.testing.assert_allclose(given, outputs_of(dense, feed)["y"], atol=2e-3)
    running = running_operators(to_stored(model))
    assert not running.keys() & {"Gather", "Concat", "Transpose"}


def test_a_form_that_saves_no_time_is_stored_where_bytes_are_asked_for() -> None:
    weight = np.kron(normal(1, 4, 4), normal(2, 5, 8)).T.astype(np.float32)
    for pays in ("latency", "bytes"):
        model = model_with("matmul", weight=weight)
        method = replace(ANY, kinds=("kronecker",), pays=pays)
        if pays == "latency":
            assert "no operators that run as fast" in refusals_of(model, FINE, method)["y"]
            continue
        (row,) = asked(model, FINE, method)
        assert row.details["stored"]
        assert row.cost_saved == 0
        assert row.error < 1e-9


def test_an_embedding_becomes_a_thin_one_and_a_product() -> None:
    text = f"{HEAD} g (int64[N] i) => (float[N, 64] y) {{ y = Gather(table, i) }}"
    table = normal(1, 400, 8) @ normal(2, 8, 64)
    model = opened(model_of(text, {"table": table.astype(np.float32)}))
    feed = {"i": np.arange(0, 400, 7)}
    expected = outputs_of(model, feed)["y"]
    (row,) = asked(model, FINE, replace(ANY, keep=0.2, pays="bytes"))
    assert row.cost_saved < 0 < row.bytes_saved
    ANY.apply(model, [row], FINE)
    assert operators(model) == ["Gather", "MatMul"]
    assert next(layers(model)).id == "y"
    np.testing.assert_allclose(outputs_of(model, feed)["y"], expected, atol=1e-3)


@pytest.mark.parametrize(
    ("details", "message"),
    [
        ({"kind": "svd"}, "'m1' can't be written as 'svd'"),
        ({"kind": "spatial"}, "'m1' can't be written as 'spatial'"),
        ({"rank": 0}, "rank must be a whole number from 1 on, got 0"),
        ({"rank": 1.5}, "rank must be a whole number from 1 on, got 1.5"),
        ({"rank": 33}, "'m1' has no rank 33"),
        ({"kind": "circulant"}, "what is written as 'circulant' can't run as nodes"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused(details: dict[str, Any], message: str) -> None:
    row = Proposal(("m1",), "factorize", 0.5, {"kind": "channel", "rank": 4, **details})
    with pytest.raises(RecipeError, match=f"factorize: .*{message}|factorize: {message}"):
        Factorize().apply(opened(mlp()), [row], CONTEXT)


def test_a_layer_that_samples_show_nothing_of_may_lose_something() -> None:
    """An error of 0 would say that the rows change no output at all."""
    model = opened(silent_cnn())
    rows = rows_of(model, seen(model, IMAGES, FINE), Factorize(pays="bytes"))
    assert any("d" in row.targets for row in rows)
    assert min(row.error for row in rows) > 0
