from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import onnx
import pytest

from onnxslim_tk.errors import RecipeError
from onnxslim_tk.graph.layers import Layer, layers
from onnxslim_tk.graph.model import Model
from onnxslim_tk.passes.share import Share
from onnxslim_tk.plan.proposal import Context
from tests.models import (
    CONTEXT,
    Array,
    mlp,
    model_of,
    normal,
    opened,
    outputs_of,
)
from tests.rows import TOKENS, asked, refusals_of, rows_of, seen

FINER = [8, 12, 16, 24, 32, 64, 256]
HEAD = '<ir_version: 8, opset_import: ["": 17]>'
CALLS: dict[str, tuple[str, tuple[int, ...], tuple[int, ...]]] = {
    "conv": ("Conv<pads=[1, 1, 1, 1]>(x, w)", (6, 8, 7, 7), (16, 8, 3, 3)),
    "grouped": ("Conv<group=2>(x, w)", (6, 32, 7, 7), (16, 16, 3, 3)),
    "depthwise": ("Conv<group=64>(x, w)", (6, 64, 7, 7), (64, 1, 3, 3)),
    "transposed": ("ConvTranspose<group=2, strides=[2, 2]>(x, w)", (6, 16, 7, 7), (16, 8, 2, 2)),
    "gemm": ("Gemm(x, w)", (300, 32), (32, 20)),
    "turned": ("Gemm<transB=1>(x, w)", (300, 32), (20, 32)),
    "matmul": ("MatMul(x, w)", (300, 32), (32, 20)),
}


def model_with(name: str, seed: int = 4) -> tuple[Model, dict[str, Array]]:
    """A model of one layer whose inputs go together, and its feed."""
    call, shape, weight = CALLS[name]
    dims, given = ", ".join(map(str, shape[1:])), "N, C, H, W" if len(shape) == 4 else "N, C"
    text = f"{HEAD} g (float[N, {dims}] x) => (float[{given}] y) {{ y = {call} }}"
    mixed = normal(seed, *shape) + 2 * normal(seed + 1, shape[0], 1, *shape[2:])
    if len(shape) == 4:
        mixed += 2 * normal(seed + 3, shape[0], shape[1], 1, 1)
    return opened(model_of(text, {"w": normal(seed + 2, *weight)})), {"x": mixed}


def matmul_chain() -> onnx.ModelProto:
    """``a``, ``b`` and ``y`` are products, one after the other."""
    text = f"""{HEAD} g (float[N, 32] x) => (float[N, 64] y) {{
        a = MatMul(x, u)
        ra = Relu(a)
        b = MatMul(ra, v)
        rb = Relu(b)
        y = MatMul(rb, w)
    }}"""
    weights = {"u": normal(1, 32, 64), "v": normal(2, 64, 64), "w": normal(3, 64, 64)}
    return model_of(text, weights)


def shared(model: Model, method: Share, context: Context) -> list[Layer]:
    """The layers that the method changed."""
    rows = asked(model, context, method)
    method.apply(model, rows, context)
    ids = {row.targets[0] for row in rows}
    return [layer for layer in layers(model) if layer.id in ids]


def reasons(proto: onnx.ModelProto, method: Share | None = None) -> dict[str, str]:
    return refusals_of(opened(proto), CONTEXT, method or Share())


def noise_of(name: str, method: Share, samples: bool = True) -> float:
    model, feed = model_with(name)
    reference = outputs_of(model, feed)["y"]
    assert shared(model, method, seen(model, feed) if samples else CONTEXT)
    change = outputs_of(model, feed)["y"] - reference
    return float(np.square(change).sum() / np.square(reference).sum())


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("clusters", [2, 5, 16])
@pytest.mark.parametrize("scaled", [False, True])
def test_a_weight_has_no_more_values_than_promised(name: str, clusters: int, scaled: bool) -> None:
    model, feed = model_with(name)
    (layer,) = shared(model, Share(clusters, scaled=scaled), seen(model, feed))
    assert 1 < len(np.unique(layer.stored.values)) <= clusters
    outputs_of(model, feed)


@pytest.mark.parametrize("name", CALLS)
def test_a_scaled_weight_is_int8_and_its_scale_is_seen(name: str) -> None:
    model, feed = model_with(name)
    (layer,) = shared(model, Share(), seen(model, feed))
    assert layer.scale is not None
    assert layer.stored.dtype == np.int8
    assert layer.scale.size == layer.shape[layer.channel_axis]
    assert np.abs(layer.stored.values.astype(int)).max() <= 127


@pytest.mark.parametrize("name", ["conv", "depthwise", "transposed", "matmul"])
def test_a_scale_for_each_channel_beats_floats(name: str) -> None:
    assert noise_of(name, Share(8), samples=False) < noise_of(
        name, Share(8, scaled=False), samples=False
    )


@pytest.mark.parametrize("name", CALLS)
def test_the_error_foretold_of_nearest_values_is_that_of_the_layer(name: str) -> None:
    model, feed = model_with(name)
    row = asked(model, seen(model, feed), Share(8, effort="quick"))[0]
    assert noise_of(name, Share(8, effort="quick")) == pytest.approx(row.error, rel=0.1)


@pytest.mark.parametrize("name", CALLS)
def test_the_error_foretold_of_feedback_allows_for_few_samples(name: str) -> None:
    model, feed = model_with(name)
    row = asked(model, seen(model, feed), Share(8))[0]
    assert 0.3 * row.error < noise_of(name, Share(8)) < row.error


@pytest.mark.parametrize("name", CALLS)
def test_more_effort_is_never_further_away(name: str) -> None:
    quick, normal, thorough = (
        noise_of(name, Share(4, effort=e)) for e in ("quick", "normal", "thorough")
    )
    assert thorough < 1.02 * normal
    assert normal < 0.8 * quick


def chain_noise(method: Share) -> tuple[float, list[Array]]:
    """Noise of a chain of products on samples not seen before, and its values."""
    model = opened(matmul_chain())
    other = {"x": (normal(11, 400, 8) @ normal(2, 8, 32)).astype(np.float32)}
    reference = outputs_of(model, other)["y"]
    assert len(shared(model, method, replace(seen(model, TOKENS), feeds=[TOKENS]))) == 3
    change = outputs_of(model, other)["y"] - reference
    noise = float(np.square(change).sum() / np.square(reference).sum())
    return noise, [layer.weight for layer in layers(model)]


def test_thorough_makes_up_for_what_layers_before_have_lost() -> None:
    normally, _ = chain_noise(Share(6))
    in_turn, weights = chain_noise(Share(6, effort="thorough"))
    assert in_turn < 0.8 * normally
    again = chain_noise(Share(6, effort="thorough"))[1]
    assert all(np.array_equal(a, b) for a, b in zip(weights, again, strict=True))


def test_pruned_zeros_stay_where_layers_come_in_turn() -> None:
    proto = matmul_chain()
    model = opened(proto)
    for layer in layers(model):
        layer.set_dense(model, np.where(np.abs(layer.weight) < 0.5, 0, layer.weight))
    zeros = [layer.weight == 0 for layer in layers(model)]
    shared(model, Share(6, effort="thorough"), replace(seen(model, TOKENS), feeds=[TOKENS]))
    for layer, mask in zip(layers(model), zeros, strict=True):
        np.testing.assert_array_equal(layer.weight[mask], 0)


def test_pairs_at_as_many_bits_are_offered_and_nearer() -> None:
    text = f"{HEAD} g (float[N, 32] x) => (float[N, 512] y) {{ y = MatMul(x, w) }}"
    model = opened(model_of(text, {"w": normal(1, 512, 32).T.copy()}))
    context = seen(model, TOKENS)
    single, pairs = rows_of(model, context, Share(16))[:2]
    assert (single.setting, pairs.setting) == (16, "256x2")
    assert pairs.bytes_saved > 0.9 * single.bytes_saved
    reference = outputs_of(model, TOKENS)["y"]
    noise = []
    for row in (single, pairs):
        twin = model.copy()
        Share(16).apply(twin, [row], context)
        noise.append(float(np.square(outputs_of(twin, TOKENS)["y"] - reference).sum()))
    assert noise[1] < 0.95 * noise[0]
    assert [row.setting for row in rows_of(model, CONTEXT, Share(16))][1] == 24, "without samples"


def test_of_three_values_one_is_zero() -> None:
    for samples in (False, True):
        model, feed = model_with("matmul")
        (layer,) = shared(model, Share(3), seen(model, feed) if samples else CONTEXT)
        assert len(np.unique(layer.stored.values)) == 3
        assert 0 in layer.stored.values


def xnor(rows: Array) -> Array:
    """Signs times the mean magnitude of each row (Rastegari et al., 2016)."""
    return np.asarray(np.sign(rows) * np.abs(rows).mean(1, keepdims=True))


def twn(rows: Array) -> Array:
    """Zeros below 0.7 of the mean magnitude, signs times the rest's above (Li et al., 2016)."""
    large = np.abs(rows) > 0.7 * np.abs(rows).mean(1, keepdims=True)
    scale = (np.abs(rows) * large).sum(1, keepdims=True) / large.sum(1, keepdims=True)
    return np.asarray(np.sign(rows) * large * scale)


@pytest.mark.parametrize(("clusters", "method"), [(2, xnor), (3, twn)])
def test_two_and_three_values_are_no_worse_than_known_methods(
    clusters: int, method: Callable[[Array], Array]
) -> None:
    weight = normal(5, 64, 96) * np.exp(normal(6, 1, 96))
    model = opened(matmul_of(weight))
    assert shared(model, Share(clusters), CONTEXT)
    (layer,) = layers(model)
    known = method(weight.T).T
    assert np.square(layer.weight - weight).sum() <= 1.01 * np.square(known - weight).sum()


@pytest.mark.parametrize("name", ["conv", "matmul"])
@pytest.mark.parametrize("scaled", [False, True])
def test_vectors_of_consecutive_values_are_shared(name: str, scaled: bool) -> None:
    model, feed = model_with(name)
    method = Share(32, dimensions=2, scaled=scaled)
    (layer,) = shared(model, method, seen(model, feed))
    vectors = np.unique(np.asarray(layer.stored.values).reshape(-1, 2), axis=0)
    assert 16 < len(vectors) <= 32
    assert np.isfinite(outputs_of(model, feed)["y"]).all()


@pytest.mark.parametrize("name", ["conv", "grouped", "gemm", "turned", "matmul", "transposed"])
@pytest.mark.parametrize("dimensions", [2, 4])
def test_feedback_helps_vectors_along_rows_and_down_columns(
    name: str, dimensions: Literal[2, 4]
) -> None:
    quick = noise_of(name, Share(32, dimensions=dimensions, effort="quick"))
    assert noise_of(name, Share(32, dimensions=dimensions)) < 0.8 * quick


def test_vectors_across_rows_are_the_nearest() -> None:
    # Nine weights a channel: a vector of two reaches into the next channel.
    quick = noise_of("depthwise", Share(32, dimensions=2, effort="quick"))
    assert noise_of("depthwise", Share(32, dimensions=2)) == quick


def test_a_silent_channel_stays_next_to_silent_in_vectors() -> None:
    weight = normal(1, 64, 40)
    weight[:, 7] = 0
    model = opened(matmul_of(weight))
    (layer,) = shared(model, Share(32, dimensions=2), CONTEXT)
    assert np.abs(layer.weight[:, 7]).max() < 0.01


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("samples", [False, True])
def test_pruned_zeros_stay_zeros(scaled: bool, samples: bool) -> None:
    proto = mlp()
    for tensor in proto.graph.initializer:
        if tensor.name.startswith("w"):
            values = onnx.numpy_helper.to_array(tensor).copy()
            values[np.abs(values) < 0.1] = 0
            values[3] = 0
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    model = opened(proto)
    before = {layer.id: layer.weight == 0 for layer in layers(model)}
    context = seen(model, TOKENS) if samples else CONTEXT
    found = shared(model, Share(scaled=scaled), context)
    assert len(found) == 2
    for layer in found:
        assert not layer.weight[before[layer.id]].any()
        assert not np.signbit(layer.weight[before[layer.id]]).any()
        assert len(np.unique(layer.stored.values)) <= 16


def test_a_silent_channel_stays_silent() -> None:
    text = f"{HEAD} g (float[N, 32] x) => (float[N, 40] y) {{ y = MatMul(x, w) }}"
    weight = normal(1, 32, 40)
    weight[:, 7] = 0
    for method in (Share(), Share(256)):
        model = opened(model_of(text, {"w": weight}))
        (layer,) = shared(model, method, seen(model, TOKENS))
        assert layer.scale is not None
        assert np.all(layer.scale > 0)
        assert not layer.weight[:, 7].any()


def test_an_embedding_has_a_scale_for_each_row() -> None:
    text = f"{HEAD} g (int64[N] i) => (float[N, 64] y) {{ y = Gather(table, i) }}"
    table = normal(1, 50, 64) * np.exp(normal(2, 50, 1))
    model = opened(model_of(text, {"table": table}))
    (layer,) = shared(model, Share(), CONTEXT)
    assert layer.scale is not None
    assert layer.scale.size == 50
    rows = outputs_of(model, {"i": np.arange(50)})["y"]
    error = np.square(rows - table).sum(1) / np.square(table).sum(1)
    assert error.max() < 0.03


def test_the_largest_codebook_is_plain_int8() -> None:
    assert noise_of("conv", Share(256)) < 1e-4
    model, feed = model_with("conv")
    row = asked(model, seen(model, feed), Share(256))[0]
    assert row.details == {"entries": [], "unit": 0.0}


def test_finer_rows_come_before_coarser_ones() -> None:
    model = opened(matmul_chain())
    rows = rows_of(model, seen(model, TOKENS), Share(6))
    mine = [row for row in rows if row.targets == ("b",)]
    assert [row.setting for row in mine[:9]] == [6, *FINER, 4]
    assert [row.setting for row in mine[9:]] in ([], [3]), "three values may take as much as four"
    for chain in (mine[:8], mine[-1:7:-1] + mine[:1]):
        errors, saved = [r.error for r in chain], [r.bytes_saved for r in chain]
        assert errors == sorted(errors, reverse=True)
        assert saved == sorted(saved, reverse=True)


def test_large_layers_in_the_middle_are_offered_vectors_of_two_and_three_bits() -> None:
    text = f"""{HEAD} g (float[N, 32] x) => (float[N, 16] y) {{
        a = MatMul(x, wa) b = MatMul(a, wb) c = MatMul(b, wc) y = MatMul(c, wy)
    }}"""
    shapes = {"wa": (32, 32), "wb": (32, 256), "wc": (256, 256), "wy": (256, 16)}
    weights = {name: normal(k, *shape) for k, (name, shape) in enumerate(shapes.items())}
    model = opened(model_of(text, weights))
    rows = rows_of(model, seen(model, TOKENS), Share(16))
    settings = {t: [r.setting for r in rows if r.targets == (t,)] for t in ("a", "b", "c", "y")}
    assert {"64x2", "256x4"} <= set(settings["c"])
    assert settings["c"].index("64x2") < settings["c"].index(8)
    for other in "ay":
        assert not {"64x2", "256x4"} & set(settings[other])


def test_the_first_and_the_last_layer_get_coarser_values_as_a_last_resort() -> None:
    model = opened(matmul_chain())
    rows = rows_of(model, seen(model, TOKENS), Share(6))
    for end in ("a", "y"):
        mine = [row for row in rows if row.targets == (end,)]
        assert [row.setting for row in mine if not row.is_last_resort] == [6, *FINER]
        assert {row.setting for row in mine if row.is_last_resort} <= {4, 3}
        assert any(row.is_last_resort for row in mine)
    assert not any(row.is_last_resort for row in rows if row.targets == ("b",))


def test_shorter_vectors_follow_longer_ones() -> None:
    text = f"{HEAD} g (float[N, 128] x) => (float[N, 256] y) {{ y = MatMul(x, w) }}"
    model = opened(model_of(text, {"w": normal(1, 128, 256)}))
    settings = [row.setting for row in rows_of(model, CONTEXT, Share(64, dimensions=4))]
    assert settings == ["64x4", "256x4", "256x2", *FINER[2:]]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"clusters": 1}, r"share: clusters must be in \[2, 256\], got 1"),
        ({"clusters": 257}, r"share: clusters must be in \[2, 256\], got 257"),
        ({"effort": "full"}, "share: effort must be quick, normal or thorough, got 'full'"),
        ({"dimensions": 3}, "share: dimensions must be 1, 2, 4 or 8, got 3"),
    ],
)
def test_a_setting_out_of_range_is_an_error(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Share(**settings)


def matmul_of(weight: Array, **constants: Array) -> onnx.ModelProto:
    rows, columns = weight.shape
    text = f"{HEAD} g (float[N, {rows}] x) => (float[N, {columns}] y) {{ y = MatMul(x, w) }}"
    return model_of(text, {"w": weight, **constants})


def test_a_small_layer_is_refused() -> None:
    assert reasons(matmul_of(normal(1, 7, 73))) == {"y": "fewer than 512 weights"}


def test_weights_that_do_not_split_into_vectors_are_refused() -> None:
    assert reasons(matmul_of(normal(1, 27, 23)), Share(dimensions=8)) == {
        "y": "621 weights do not split into vectors of 8"
    }


def test_pruned_weights_are_not_put_in_vectors() -> None:
    weight = normal(1, 32, 32)
    weight[np.abs(weight) < 0.5] = 0
    assert reasons(matmul_of(weight), Share(dimensions=2)) == {
        "y": "pruned zeros would not survive in vectors"
    }


def test_a_weight_that_packs_as_well_already_is_refused() -> None:
    assert reasons(matmul_of(np.sign(normal(1, 32, 32)))) == {
        "y": "a codebook would not make the packed weight smaller"
    }


UNSEEN = f"""{HEAD} g (bool c, float[S, 1, 32] x) => (float[A, B, C, D] y) {{
    y = If(c)<
        then_branch = yes () => (float[A, B, C, D] p) {{ p = LSTM<hidden_size=16>(x, w, r) }},
        else_branch = no () => (float[A, B, C, D] q) {{ q = GRU<hidden_size=16>(x, v, u) }}
    >
}}"""


def test_what_samples_cannot_steer_gets_no_coarse_codebook() -> None:
    shapes = {"w": (64, 32), "r": (64, 16), "v": (48, 32), "u": (48, 16)}
    weights = {name: normal(k, 1, *shape) for k, (name, shape) in enumerate(shapes.items())}
    model = opened(model_of(UNSEEN, weights))
    context = seen(model, {"c": np.array(True), "x": normal(9, 5, 1, 32)})
    taken, other = "y/then_branch/p", "y/else_branch/q"
    for given, expected in ((context, 256), (CONTEXT, 16)):
        rows = asked(model, given, Share())
        found = {row.targets[0]: row.setting for row in rows}
        assert found == {
            **dict.fromkeys((f"{taken}:W", f"{taken}:R"), 16),
            **dict.fromkeys((f"{other}:W", f"{other}:R"), expected),
        }
    assert {row.setting for row in asked(model, context, Share(effort="quick"))} == {16}


@pytest.mark.parametrize("op", ["LSTM", "GRU", "RNN"])
def test_recurrent_weights_are_shared_by_row_and_direction(op: str) -> None:
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[op] * 24
    text = f"""{HEAD} g (float[S, N, 32] x) => (float[A, B, C, D] y) {{
        y = {op}<hidden_size=24, direction="bidirectional">(x, w, r)
    }}"""
    weights = {"w": normal(0, 2, gates, 32, scale=0.2), "r": normal(1, 2, gates, 24, scale=0.2)}
    model = opened(model_of(text, weights))
    feed = {"x": normal(3, 40, 4, 32)}
    before = outputs_of(model, feed)["y"]
    context = seen(model, feed)
    rows = asked(model, context, Share(clusters=16))
    assert [row.targets[0] for row in rows] == ["y:W", "y:R"]
    Share(clusters=16).apply(model, rows, context)
    for layer in layers(model):
        assert layer.scale is not None
        assert layer.scale.size == 2 * gates
        assert len(np.unique(layer.stored.values)) <= 16
    after = outputs_of(model, feed)["y"]
    assert np.square(after - before).sum() < 0.05 * np.square(before).sum()
