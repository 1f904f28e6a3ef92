from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from onnxslim_tk.errors import RecipeError
from onnxslim_tk.graph.layers import layers
from onnxslim_tk.graph.model import Model
from onnxslim_tk.measure.observe import observe, observed_shapes
from onnxslim_tk.packing.pack import pack
from onnxslim_tk.passes.channels import Channels
from onnxslim_tk.plan.allocation import Figures
from onnxslim_tk.plan.proposal import Context, Proposal, Refusal
from onnxslim_tk.plan.targets import ONNXRUNTIME_CPU
from tests.graph.topologies import tied_embeddings
from tests.models import (
    chain_cnn,
    depthwise_cnn,
    mlp,
    model_of,
    normal,
    opened,
    outputs,
    outputs_of,
    residual_cnn,
    statistics,
    to_proto,
)

Array = NDArray[Any]
STEP = 4
FINE = replace(ONNXRUNTIME_CPU, channel_step=STEP)
IMAGES = normal(90, 6, 3, 16, 16)


def rows_of(
    model: Model, context: Context, method: Channels | None = None
) -> tuple[list[Proposal], list[Refusal]]:
    """The asked-for row of every group, and the refusals."""
    found = list((method or Channels()).propose(model, context))
    first = {row.targets: row for row in reversed(found) if isinstance(row, Proposal)}
    asked = [row for row in found if isinstance(row, Proposal) and first[row.targets] is row]
    return asked, [row for row in found if isinstance(row, Refusal)]


def context_of(model: Model, feed: dict[str, Array], samples: bool = False) -> Context:
    shapes = observed_shapes(model, feed)
    context = Context(FINE, shapes=shapes)
    if samples:
        seen = observe(model, [feed], frozenset({"covariance"}), 0, shapes)
        context = replace(context, statistics=seen)
    return context


def masked(
    proto: onnx.ModelProto,
    rows: list[Proposal],
    readers: dict[str, list[tuple[str, int, int]]],
) -> onnx.ModelProto:
    """The model with zeros for what ``readers`` (tensor, axis, block by first maker) lose."""
    tensors = {tensor.name: tensor for tensor in proto.graph.initializer}
    for row in rows:
        for name, axis, block in readers[row.details["group"][0]]:
            values = numpy_helper.to_array(tensors[name]).copy()
            kept = (np.array(row.details["kept"])[:, None] * block + np.arange(block)).ravel()
            gone = np.setdiff1d(np.arange(values.shape[axis]), kept)
            np.moveaxis(values, axis, 0)[gone] = 0
            tensors[name].CopyFrom(numpy_helper.from_array(values, name))
    return proto


def batchnorm_residual_cnn() -> onnx.ModelProto:
    text = """<ir_version: 8, opset_import: ["": 17]>
    g (float[N, 3, 16, 16] x) => (float[N, 10] y) {
        c0 = Conv<pads=[1, 1, 1, 1]>(x, w0)
        n0 = BatchNormalization(c0, as, ab, am, av)
        c1 = Conv<pads=[1, 1, 1, 1]>(n0, w1)
        n1 = BatchNormalization(c1, bs, bb, bm, bv)
        r1 = LeakyRelu(n1)
        c2 = Conv<pads=[1, 1, 1, 1]>(r1, w2)
        n2 = BatchNormalization(c2, cs, cb, cm, cv)
        s2 = Add(n0, n2)
        k2 = Mul(s2, scale)
        p = MaxPool<kernel_shape=[2, 2], strides=[2, 2]>(k2)
        a = GlobalAveragePool(p)
        f = Flatten(a)
        y = Gemm<transB=1>(f, w3)
    }"""
    constants = {
        "w0": normal(0, 16, 3, 3, 3),
        "w1": normal(1, 24, 16, 3, 3, scale=0.1),
        "w2": normal(2, 16, 24, 3, 3, scale=0.1),
        "w3": normal(3, 10, 16),
        "scale": normal(4, 1, 16, 1, 1),
        **statistics(10, 16, "a"),
        **statistics(20, 24, "b"),
        **statistics(30, 16, "c"),
    }
    return model_of(text, constants)


def flatten_cnn() -> onnx.ModelProto:
    text = """<ir_version: 8, opset_import: ["": 17]>
    g (float[N, 3, 16, 16] x) => (float[N, 10] y) {
        c0 = Conv<strides=[4, 4]>(x, w0)
        r0 = Relu(c0)
        f = Flatten(r0)
        g1 = Gemm(f, w1, b1)
        r1 = Relu(g1)
        y = MatMul(r1, w2)
    }"""
    constants = {
        "w0": normal(0, 8, 3, 4, 4),
        "w1": normal(1, 128, 12, scale=0.1),
        "b1": normal(2, 1, 12),
        "w2": normal(3, 12, 10),
    }
    return model_of(text, constants)


def reshape_cnn() -> onnx.ModelProto:
    text = """<ir_version: 8, opset_import: ["": 17]>
    g (float[N, 3, 16, 16] x) => (float[N, 10] y) {
        c0 = Conv<strides=[4, 4]>(x, w0)
        s = Shape(x)
        b = Slice(s, zeros, ones, zeros)
        t = Concat<axis=0>(b, rest)
        f = Reshape(c0, t)
        y = MatMul(f, w1)
    }"""
    constants = {
        "w0": normal(0, 8, 3, 4, 4),
        "w1": normal(1, 128, 10),
        "zeros": np.array([0]),
        "ones": np.array([1]),
        "rest": np.array([128]),
    }
    return model_of(text, constants)


def self_residual_cnn() -> onnx.ModelProto:
    """A convolution that reads the channels that it adds to, in a Resize to constant sizes."""
    text = """<ir_version: 8, opset_import: ["": 17]>
    g (float[N, 3, 16, 16] x) => (float[N, 10] y) {
        c0 = Conv(x, w0)
        c1 = Conv<pads=[1, 1, 1, 1]>(c0, w1)
        s = Add(c0, c1)
        u = Resize<mode="nearest">(s, , , sizes)
        d = Conv<group=16>(u, w2)
        a = GlobalAveragePool(d)
        f = Flatten(a)
        y = Gemm<transB=1>(f, w3)
    }"""
    constants = {
        "w0": normal(0, 16, 3, 3, 3),
        "w1": normal(1, 16, 16, 3, 3, scale=0.1),
        "w2": normal(2, 16, 1, 3, 3),
        "w3": normal(3, 10, 16),
        "sizes": np.array([6, 16, 28, 28]),
    }
    return model_of(text, constants)


CASES: list[tuple[Any, dict[str, list[tuple[str, int, int]]]]] = [
    (chain_cnn, {"c1": [("w2", 1, 1)], "c2": [("w3", 1, 1)]}),
    (
        residual_cnn,
        {
            "c0": [("w1", 1, 1), ("w3", 1, 1), ("w5", 1, 1)],
            "c1": [("w2", 1, 1)],
            "c3": [("w4", 1, 1)],
        },
    ),
    (batchnorm_residual_cnn, {"c0": [("w1", 1, 1), ("w3", 1, 1)], "c1": [("w2", 1, 1)]}),
    (depthwise_cnn, {"c1": [("w3", 1, 1)], "c3": [("w4", 1, 1)]}),
    (mlp, {"m1": [("w2", 0, 1)], "g2": [("w3", 1, 1)]}),
    (flatten_cnn, {"c0": [("w1", 0, 16)], "g1": [("w2", 0, 1)]}),
    (reshape_cnn, {"c0": [("w1", 0, 16)]}),
    (self_residual_cnn, {"c0": [("w1", 1, 1), ("w3", 1, 1)]}),
]
PROTOS = [pytest.param(build, readers, id=build.__name__) for build, readers in CASES]


def feed_of(proto: onnx.ModelProto) -> dict[str, Array]:
    return {"x": normal(91, 6, 32) if proto.graph.name == "mlp" else IMAGES}


@pytest.mark.parametrize(("build", "readers"), PROTOS)
def test_a_cut_without_samples_equals_zeros_in_what_reads_the_channels(
    build: Any, readers: dict[str, list[tuple[str, int, int]]]
) -> None:
    proto = build()
    model, feed = opened(proto), feed_of(proto)
    context = context_of(model, feed)
    rows, _ = rows_of(model, context)
    assert {row.details["group"][0] for row in rows} == set(readers)
    expected = outputs(masked(build(), rows, readers), feed)["y"]
    Channels().apply(model, rows, context)
    np.testing.assert_allclose(outputs_of(model, feed)["y"], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("build", "readers"), PROTOS)
def test_each_group_may_be_cut_alone(
    build: Any, readers: dict[str, list[tuple[str, int, int]]]
) -> None:
    proto = build()
    feed = feed_of(proto)
    context = context_of(opened(proto), feed)
    rows, _ = rows_of(opened(proto), context)
    assert rows
    for row in rows:
        model = opened(proto)
        Channels().apply(model, [row], context)
        expected = outputs(masked(build(), [row], readers), feed)["y"]
        np.testing.assert_allclose(outputs_of(model, feed)["y"], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("samples", [False, True])
@pytest.mark.parametrize(("build", "readers"), PROTOS)
def test_announced_savings_are_those_of_the_file(
    build: Any, readers: dict[str, list[tuple[str, int, int]]], samples: bool
) -> None:
    proto = build()
    model, feed = opened(proto), feed_of(proto)
    context = context_of(model, feed, samples)
    rows, _ = rows_of(model, context)
    before = to_proto(model)
    Channels().apply(model, rows, context)
    after = to_proto(model)
    pack(before)
    pack(after)
    saved = before.ByteSize() - after.ByteSize()
    assert abs(saved - sum(row.bytes_saved for row in rows)) < 0.02 * saved + 150


def test_announced_multiplications_are_those_that_go() -> None:
    model, feed = opened(depthwise_cnn()), {"x": IMAGES}
    rows, _ = rows_of(model, context_of(model, feed))
    pixels, batch = 64, 6
    before = 16 * 27 * pixels + 16 * 9 * pixels + 16 * 32 * pixels + 320
    after = 8 * 27 * pixels + 8 * 9 * pixels + 8 * 16 * pixels + 160
    assert sum(row.macs_saved for row in rows) == batch * (before - after)


def correlated_cnn() -> onnx.ModelProto:
    """Eight channels' worth of signal mixed into 32, so that half of them can stand for all."""
    proto = chain_cnn()
    tensors = {tensor.name: tensor for tensor in proto.graph.initializer}
    for name, shape in (("w1", (16, 4)), ("w2", (32, 8))):
        values = numpy_helper.to_array(tensors[name])
        mixed = np.tensordot(normal(50, *shape, scale=0.5), values[: shape[1]], 1)
        tensors[name].CopyFrom(numpy_helper.from_array(mixed.astype(np.float32), name))
    return proto


def noise_db(reference: Array, got: Array) -> float:
    return float(10 * np.log10(np.square(reference).sum() / np.square(reference - got).sum()))


def smooth_images(seed: int, count: int) -> Array:
    coarse = normal(seed, count, 3, 4, 4)
    return np.asarray(np.kron(coarse, np.ones((1, 1, 4, 4), np.float32)), np.float32)


@pytest.mark.parametrize("importance", ["obs", "energy", "random"])
def test_a_refit_beats_no_refit_by_far_on_samples_that_it_has_not_seen(importance: Any) -> None:
    proto, feed = correlated_cnn(), {"x": smooth_images(60, 64)}
    unseen = {"x": smooth_images(61, 32)}
    reference = outputs(proto, unseen)["y"]
    context = context_of(opened(proto), feed, samples=True)
    rows, _ = rows_of(opened(proto), context, Channels(importance=importance))
    quality = []
    for seen in (context.statistics, None):
        model = opened(proto)
        Channels().apply(model, rows, replace(context, statistics=seen))
        quality.append(noise_db(reference, outputs_of(model, unseen)["y"]))
    assert quality[0] > quality[1] + 8


def test_a_refit_keeps_the_mean_of_every_output() -> None:
    proto, feed = mlp(), {"x": normal(62, 300, 32)}
    model = opened(proto)
    context = context_of(model, feed, samples=True)
    row = next(r for r in rows_of(model, context)[0] if r.details["group"] == ["g2"])
    Channels().apply(model, [row], context)
    means = [outputs(p, feed)["y"].mean(0) for p in (proto, to_proto(model))]
    np.testing.assert_allclose(means[1], means[0], atol=1e-4)


def test_a_matmul_without_a_bias_gains_one_that_later_cuts_shorten() -> None:
    text = """<ir_version: 8, opset_import: ["": 17]>
    g (float[N, 32] x) => (float[N, 8] y) {
        a = MatMul(x, w1) b = Relu(a) c = MatMul(b, w2) d = Relu(c) y = MatMul(d, w3)
    }"""
    weights = {"w1": normal(1, 32, 24), "w2": normal(2, 24, 16), "w3": normal(3, 16, 8)}
    proto, feed = model_of(text, weights), {"x": normal(63, 200, 32)}
    model = opened(proto)
    context = context_of(model, feed, samples=True)
    Channels().apply(model, rows_of(model, context)[0], context)
    assert outputs_of(model, feed)["y"].shape == (200, 8)
    shapes = sorted(tuple(tensor.dims) for tensor in to_proto(model).graph.initializer)
    assert shapes == [(8,), (8,), (8, 8), (12, 8), (32, 12)]


def test_a_mean_far_above_the_spread_does_not_break_the_refit() -> None:
    proto, feed = mlp(), {"x": 1000 + normal(64, 20, 32, scale=1e-3)}
    model = opened(proto)
    context = context_of(model, feed, samples=True)
    reference = outputs(proto, feed)["y"]
    Channels().apply(model, rows_of(model, context)[0], context)
    assert noise_db(reference, outputs_of(model, feed)["y"]) > 40


def test_kept_counts_are_steps_and_milder_ones_hold_the_sterner() -> None:
    model = opened(mlp())
    context = Context(replace(FINE, channel_step=8))
    found = [row for row in Channels(keep=0.3).propose(model, context) if isinstance(row, Proposal)]
    rows = [row for row in found if row.details["group"] == ["m1"]]
    assert [len(row.details["kept"]) for row in rows] == [16, 32, 40, 48]
    assert [row.setting for row in rows] == [0.3, 0.5, 0.625, 0.75]
    for stern, mild in pairwise(rows):
        assert set(stern.details["kept"]) < set(mild.details["kept"])
        assert stern.error > mild.error
        assert stern.bytes_saved > mild.bytes_saved
    assert rows[0].targets == ("m1", "g2")


@pytest.mark.parametrize(
    ("step", "keep", "reason"),
    [
        (64, 0.5, "64 channels are no more than one step of 64"),
        (16, 0.9, "keep 0.9 leaves all 64 channels, rounded to steps of 16"),
    ],
)
def test_what_rounding_leaves_whole_is_refused(step: int, keep: float, reason: str) -> None:
    context = Context(replace(FINE, channel_step=step))
    _, refusals = rows_of(opened(mlp()), context, Channels(keep=keep))
    assert Refusal("m1", "channels", reason) in refusals


def test_barriers_and_weights_that_are_not_finite_are_refused() -> None:
    proto = mlp()
    tensor = proto.graph.initializer[2]
    values = numpy_helper.to_array(tensor).copy()
    values[0, 0] = np.nan
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    rows, refusals = rows_of(opened(proto), Context(FINE))
    assert not rows
    assert {r.target: r.reason for r in refusals} == {
        "m1": "the weight of 'g2' holds values that are not finite",
        "g2": "the weight of 'g2' holds values that are not finite",
        "y": "the channels reach output 'y'",
    }


def test_a_pattern_that_names_any_maker_sets_the_group() -> None:
    overrides = (("c4", {"channels": 0.75}),)
    rows, _ = rows_of(opened(residual_cnn()), Context(FINE, overrides=overrides))
    kept = {row.details["group"][0]: len(row.details["kept"]) for row in rows}
    assert kept == {"c0": 12, "c1": 8, "c3": 8}


@pytest.mark.parametrize(
    ("context", "left"),
    [
        (Context(FINE, exclude=("y",)), {"c1", "c3"}),
        (Context(FINE, exclude=("c1",)), {"c3"}),
        (Context(FINE, overrides=(("c0", {"channels": False}),)), {"c1", "c3"}),
    ],
)
def test_a_group_that_touches_an_excluded_layer_is_left_alone(
    context: Context, left: set[str]
) -> None:
    rows, _ = rows_of(opened(residual_cnn()), context)
    assert {row.details["group"][0] for row in rows} == left


@pytest.mark.parametrize("importance", ["l1", "l2"])
def test_norms_keep_the_channels_of_the_largest_weights(importance: Any) -> None:
    proto = mlp()
    weight = numpy_helper.to_array(proto.graph.initializer[0])
    rows, _ = rows_of(opened(proto), Context(FINE), Channels(importance=importance))
    norms = np.linalg.norm(weight, 1 if importance == "l1" else 2, axis=0)
    assert rows[0].details["kept"] == sorted(np.argsort(-norms)[:32].tolist())


def test_energy_drops_channels_that_bring_nothing() -> None:
    proto = mlp()
    bias, tensor = proto.graph.initializer[1:3]
    # No channel is dead of its own.
    bias.CopyFrom(numpy_helper.from_array(np.zeros(64, np.float32), bias.name))
    values = numpy_helper.to_array(tensor).copy()
    values[1::2] = 0
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    model = opened(proto)
    context = context_of(model, {"x": normal(65, 100, 32)}, samples=True)
    for importance in ("obs", "energy"):
        rows, _ = rows_of(model, context, Channels(importance=importance))
        assert rows[0].details["kept"] == list(range(0, 64, 2))
        assert rows[0].error < 1e-6


def test_another_seed_keeps_other_random_channels() -> None:
    model, method = opened(mlp()), Channels(importance="random")
    first, same, other = (rows_of(model, Context(FINE, seed=s), method)[0] for s in (0, 0, 1))
    assert first[0].details == same[0].details
    assert first[0].details != other[0].details


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"keep": 0.0}, r"channels: keep must be in \(0, 1\], got 0.0"),
        ({"keep": 1.2}, r"channels: keep must be in \(0, 1\], got 1.2"),
        ({"macs": 1.5}, r"channels: macs must be in \(0, 1\], got 1.5"),
        ({"attention": "all"}, "channels: attention must be heads or size, got 'all'"),
        ({"importance": "most"}, "channels: importance must be .* got 'most'"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Channels(**settings)


@pytest.mark.parametrize(
    ("details", "message"),
    [
        ({"group": ["nothing"], "kept": [0]}, "no channels to cut that 'nothing' make"),
        ({"group": ["m1"], "kept": [0, 0]}, "kept must be different channels of 'm1'"),
        ({"group": ["m1"], "kept": []}, "kept must be different channels of 'm1'"),
        ({"group": ["m1"], "kept": [64]}, "kept must be channels of 'm1' below 64"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused(details: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Channels().apply(
            opened(mlp()), [Proposal(("m1",), "channels", 0.5, details)], Context(FINE)
        )


def test_elimination_finds_better_channels_than_energy_and_chance() -> None:
    proto, feed = correlated_cnn(), {"x": smooth_images(60, 64)}
    model = opened(proto)
    context = context_of(model, feed, samples=True)
    errors = [
        sum(row.error for row in rows_of(model, context, Channels(importance=kind))[0])
        for kind in ("obs", "energy", "random")
    ]
    assert errors[0] < min(errors[1:])


def test_a_refit_in_order_makes_up_for_what_went_before() -> None:
    proto = correlated_cnn()
    feeds = [{"x": smooth_images(100 + k, 8)} for k in range(12)]
    model = opened(proto)
    shapes = observed_shapes(model, feeds[0])
    seen = observe(model, feeds, frozenset({"covariance"}), 0, shapes)
    context = Context(FINE, statistics=seen, feeds=feeds, shapes=shapes)
    method, unseen = Channels(keep=0.25), {"x": smooth_images(61, 32)}
    rows, _ = rows_of(model, context, method)
    reference = outputs(proto, unseen)["y"]
    quality = []
    for sequential in (False, True):
        cut = opened(proto)
        Channels(keep=0.25, sequential=sequential).apply(cut, rows, context)
        quality.append(noise_db(reference, outputs_of(cut, unseen)["y"]))
    assert quality[1] > quality[0] + 0.5


@pytest.mark.parametrize("figure", ["macs", "latency", "parameters"])
def test_a_figure_of_the_whole_is_met_by_ratios_per_group(figure: str) -> None:
    # Convolutions of fewer than 16 channels take the time of 16.
    flat = figure == "latency"
    feeds = [{"x": normal(k, 8, 32) if flat else smooth_images(100 + k, 4)} for k in range(4)]
    model = opened(mlp() if flat else residual_cnn())
    shapes = observed_shapes(model, feeds[0])
    seen = observe(model, feeds, frozenset({"covariance"}), 0, shapes)
    context = Context(FINE, statistics=seen, feeds=feeds, shapes=shapes)
    method = Channels(keep=0.25, **{figure: 0.7})  # type: ignore[arg-type]
    rows, _ = rows_of(model, context, method)

    def total() -> float:
        found = list(layers(model))
        figures = Figures(found, observed_shapes(model, feeds[0]), FINE)
        return float(sum(getattr(figures, figure)(layer.id, {}) for layer in found))

    before = total()
    method.apply(model, rows, context)
    assert 0.4 < total() / before <= 0.7 + 1e-9


def test_layers_that_few_rows_fit_by_heart_are_not_taken_for_free() -> None:
    text = """<ir_version: 8, opset_import: ["": 17]>
    g (float[N, 24] a, float[N, 40, 8] b) => (float[N, 8] y) {
        a1 = Gemm(a, v0) a2 = Relu(a1) a3 = Gemm(a2, v1)
        b1 = MatMul(b, w0) b2 = Relu(b1) b3 = MatMul(b2, w1)
        b4 = ReduceMean<axes=[1], keepdims=0>(b3)
        y = Add(a3, b4)
    }"""
    # 24 samples are fitted by any 24 of the 48 inputs of a3; those of b3 are seen in 40 places of
    # each sample, and errors there average out.
    half = normal(1, 8, 24)
    weights = {"v0": normal(2, 24, 48), "v1": normal(3, 48, 8), "w1": 6 * normal(4, 48, 8)}
    weights["w0"] = np.concatenate([half, half + 1.4 * normal(5, 8, 24)], axis=1)
    proto = model_of(text, weights)
    feeds = [{"a": normal(100 + k, 1, 24), "b": normal(200 + k, 1, 40, 8)} for k in range(24)]
    model = opened(proto)
    shapes = observed_shapes(model, feeds[0])
    seen = observe(model, feeds, frozenset({"covariance"}), 0, shapes)
    context = Context(FINE, statistics=seen, feeds=feeds, shapes=shapes)
    rows, _ = rows_of(model, context, Channels(keep=0.25, parameters=0.85))
    assert [row.targets[0] for row in rows] == ["b1"]


def test_a_head_that_shares_its_table_with_the_embedding_goes_on_sharing() -> None:
    proto = tied_embeddings()
    feed = {"x": np.arange(80).reshape(16, 5)}
    model = opened(proto)
    context = context_of(model, feed, samples=True)
    rows = [row for row in rows_of(model, context)[0] if "e" in row.targets]
    assert [row.targets for row in rows] == [("e", "d", "m", "y")]
    Channels().apply(model, rows, context)
    tables = [t.name for t in to_proto(model).graph.initializer if t.dims[0] == 80]
    assert len(tables) == 1
    assert outputs_of(model, feed)["y"].shape == (16, 5, 80)
