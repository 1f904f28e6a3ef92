from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest

from onnxslim_tk.errors import RecipeError
from onnxslim_tk.graph.blocks import nodes_behind, residual_blocks
from onnxslim_tk.graph.layers import layers
from onnxslim_tk.graph.model import Model
from onnxslim_tk.measure.observe import observed_shapes
from onnxslim_tk.measure.probe import Probe
from onnxslim_tk.passes.blocks import Blocks
from onnxslim_tk.plan.proposal import Context, Proposal, Refusal
from onnxslim_tk.plan.targets import ONNXRUNTIME_CPU
from tests.graph.topologies import convnext, feature_pyramid, gated_mlp, preactivation_residual
from tests.models import model_of, normal, opened, operators, outputs, outputs_of, residual_cnn

FEEDS = [{"x": normal(70 + k, 2, 3, 16, 16)} for k in range(8)]


def context_of(model: Model, feeds: Any = FEEDS) -> Context:
    return Context(ONNXRUNTIME_CPU, feeds=feeds, shapes=observed_shapes(model, feeds[0]))


def uneven_cnn(weak: float = 0.01) -> onnx.ModelProto:
    """Two residual blocks, of which the first adds little to what comes by."""
    proto = residual_cnn()
    for tensor in proto.graph.initializer:
        if tensor.name in ("w2", "b2"):
            values = onnx.numpy_helper.to_array(tensor) * weak
            tensor.CopyFrom(onnx.numpy_helper.from_array(values.astype(np.float32), tensor.name))
    return proto


def rows_of(model: Model, context: Context, method: Blocks) -> list[Proposal]:
    return [row for row in method.propose(model, context) if isinstance(row, Proposal)]


def test_branches_that_are_added_to_what_they_were_made_from_are_blocks() -> None:
    model = opened(residual_cnn())
    shapes = observed_shapes(model, FEEDS[0])
    assert [block.key for block in residual_blocks(model, shapes)] == [("c1", "c2"), ("c3", "c4")]


@pytest.mark.parametrize(
    ("build", "count"), [(preactivation_residual, 1), (convnext, 1), (feature_pyramid, 0)]
)
def test_blocks_of_other_networks(build: Any, count: int) -> None:
    model = opened(build())
    feed = {"x": normal(90, 2, 3, 8, 8)}
    assert len(residual_blocks(model, observed_shapes(model, feed))) == count


def test_a_gated_mlp_is_one_block() -> None:
    model = opened(gated_mlp())
    (block,) = residual_blocks(model, observed_shapes(model, {"x": normal(91, 2, 5, 16)}))
    assert block.key == ("g", "u", "d")
    assert block.channel_axis == 2


def turned_sequences() -> onnx.ModelProto:
    """A convolution along the steps of sequences, whose channels come last."""
    text = """<ir_version: 8, opset_import: ["": 17]>
    g (float[N, T, 8] x) => (float[N, T, 4] y) {
        i = MatMul(x, w0)
        a = Transpose<perm=[0, 2, 1]>(i)
        c = Conv<pads=[1, 1]>(a, w1)
        r = Relu(c)
        e = Transpose<perm=[0, 2, 1]>(r)
        s = Add(i, e)
        y = MatMul(s, w2)
    }"""
    weights = {"w0": (8, 8), "w1": (8, 8, 3), "w2": (8, 4)}
    return model_of(text, {name: normal(k, *of) for k, (name, of) in enumerate(weights.items())})


def test_sequences_of_different_lengths_have_one_mean() -> None:
    model = opened(turned_sequences())
    feeds = [{"x": normal(k, 2, 4 + k, 8)} for k in range(4)]
    context = context_of(model, feeds)
    (block,) = residual_blocks(model, context.shapes)
    assert (block.rank, block.channel_axis) == (3, 2)
    (row,) = rows_of(model, context, Blocks(max_error=10.0))
    assert len(row.details["mean"]) == 8
    Blocks().apply(model, [row], context)
    assert outputs_of(model, {"x": normal(9, 3, 11, 8)})["y"].shape == (3, 11, 4)


def test_channels_are_followed_through_what_reshapes() -> None:
    text = """<ir_version: 8, opset_import: ["": 17]>
    g (float[N, 8, 4, 4] x) => (float[N, 8, 4, 4] y) {
        i = Relu(x)
        f = Reshape(i, flat)
        t = Transpose<perm=[0, 2, 1]>(f)
        m = MatMul(t, w)
        u = Transpose<perm=[0, 2, 1]>(m)
        b = Reshape(u, grid)
        s = Add(b, i)
        y = Relu(s)
    }"""
    constants = {
        "w": normal(1, 8, 8),
        "flat": np.array([0, 0, -1]),
        "grid": np.array([0, 0, 4, 4]),
    }
    model = opened(model_of(text, constants))
    (block,) = residual_blocks(model, observed_shapes(model, {"x": normal(2, 3, 8, 4, 4)}))
    assert block.channel_axis == 1


def nested() -> onnx.ModelProto:
    """A block inside another, and one behind both."""
    text = """<ir_version: 8, opset_import: ["": 17]>
    g (float[N, 16] x) => (float[N, 4] y) {
        i = Gemm(x, w0)
        a = Gemm(i, w1) b = Relu(a) c = Gemm(b, w2) s = Add(i, c)
        d = Gemm(s, w3) e = Tanh(d) o = Add(i, e)
        f = Gemm(o, w4) h = Relu(f) k = Gemm(h, w5) z = Add(o, k)
        y = Gemm(z, w6)
    }"""
    scales = (1.0, 0.2, 0.05, 0.3, 0.2, 0.1)
    weights = {f"w{k}": normal(k, 16, 16, scale=scale) for k, scale in enumerate(scales)}
    return model_of(text, {**weights, "w6": normal(6, 16, 4)})


def test_of_blocks_inside_each_other_one_goes() -> None:
    model = opened(nested())
    context = context_of(model, [{"x": normal(k, 20, 16)} for k in range(6)])
    method = Blocks(max_error=10.0, recover=False)
    found = list(method.propose(model, context))
    rows = [row for row in found if isinstance(row, Proposal)]
    assert [row.targets for row in rows] == [("a", "c"), ("f", "k")]
    (refusal,) = [row for row in found if isinstance(row, Refusal)]
    assert refusal.reason == "another that lies inside it, or around it, goes already"


def test_a_block_of_float16_leaves_a_mean_of_that_type() -> None:
    text = """<ir_version: 8, opset_import: ["": 17]>
    g (float16[N, 16] x) => (float16[N, 16] y) {
        i = Gemm(x, w0) a = Gemm(i, w1) b = Relu(a) s = Add(i, b) y = Gemm(s, w2)
    }"""
    weights = {f"w{k}": normal(k, 16, 16, scale=0.2).astype(np.float16) for k in range(3)}
    model = opened(model_of(text, weights))
    feeds = [{"x": normal(k, 20, 16).astype(np.float16)} for k in range(6)]
    context = context_of(model, feeds)
    (row,) = rows_of(model, context, Blocks(max_error=10.0))
    Blocks().apply(model, [row], context)
    assert outputs_of(model, feeds[0])["y"].dtype == np.float16


def test_what_reads_a_block_in_a_branch_alone_is_behind_it_and_so_is_what_follows() -> None:
    text = """<ir_version: 8, opset_import: ["": 17]>
    g (float[N, 8] x, bool flag) => (float[N, 8] y) {
        a = Gemm(x, w)
        r = Relu(a)
        q = If(flag) <
            then_branch = t () => (float[A, B] u) { u = Gemm(r, w) },
            else_branch = e () => (float[C, D] v) { v = Abs(r) }
        >
        y = Gemm(q, w)
    }"""
    model = opened(model_of(text, {"w": normal(1, 8, 8)}))
    behind = nodes_behind(model, [model.graph.nodes[0].outputs[0]])
    found = {layer.id for layer in layers(model) if id(layer.node) in behind}
    assert found == {"q/then_branch/u", "y"}


def test_what_was_never_run_has_no_blocks() -> None:
    assert not residual_blocks(opened(residual_cnn()), {})


def test_what_else_is_read_inside_a_branch_stays() -> None:
    text = """<ir_version: 8, opset_import: ["": 17]>
    g (float[N, 8] x) => (float[N, 8] y, float[N, 8] z) {
        a = Gemm(x, w) r = Relu(a) q = Mul(r, x) b = Gemm(q, v) y = Add(x, b) z = Abs(a)
    }"""
    model = opened(model_of(text, {"w": normal(1, 8, 8), "v": normal(2, 8, 8)}))
    (block,) = residual_blocks(model, observed_shapes(model, {"x": normal(3, 4, 8)}))
    assert block.key == ("b",)


def test_the_block_that_the_outputs_hardly_miss_goes() -> None:
    proto = uneven_cnn()
    model = opened(proto)
    context = context_of(model)
    errors = sorted(row.error for row in rows_of(model, context, Blocks(max_error=1e3)))
    assert errors[0] < 0.1 * errors[1]
    method = Blocks(max_error=errors[1] / 2)
    found = list(method.propose(model, context))
    rows = [row for row in found if isinstance(row, Proposal)]
    assert [row.targets for row in rows] == [("c1", "c2")]
    assert rows[0].macs_saved > 0
    assert rows[0].cost_saved > 0
    (refusal,) = [row for row in found if isinstance(row, Refusal)]
    assert refusal.target == "c3"
    assert refusal.reason.startswith("the outputs would miss")
    method.apply(model, rows, context)
    assert operators(model).count("Conv") == operators(opened(proto)).count("Conv") - 2
    unseen = {"x": normal(99, 4, 3, 16, 16)}
    before, after = outputs(proto, unseen)["y"], outputs_of(model, unseen)["y"]
    assert np.square(before - after).mean() < errors[1] * np.square(before).mean()


def test_what_it_adds_on_average_is_added_still() -> None:
    proto = uneven_cnn(weak=0.0)
    for tensor in proto.graph.initializer:
        if tensor.name == "b2":
            values = normal(5, *onnx.numpy_helper.to_array(tensor).shape)
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    model = opened(proto)
    context = context_of(model)
    method = Blocks(recover=False)
    rows = rows_of(model, context, method)
    method.apply(model, [row for row in rows if row.targets == ("c1", "c2")], context)
    unseen = {"x": normal(99, 4, 3, 16, 16)}
    expected = outputs(proto, unseen)["y"]
    np.testing.assert_allclose(outputs_of(model, unseen)["y"], expected, rtol=1e-4, atol=1e-4)


def test_a_refit_behind_makes_up_for_a_block() -> None:
    proto = residual_cnn()
    unseen = {"x": normal(99, 8, 3, 16, 16)}
    before = outputs(proto, unseen)["y"]
    errors = []
    for recover in (False, True):
        model = opened(proto)
        context = context_of(model, [{"x": normal(200 + k, 4, 3, 16, 16)} for k in range(12)])
        method = Blocks(max_error=10.0, recover=recover)
        rows = [row for row in rows_of(model, context, method) if row.targets == ("c1", "c2")]
        method.apply(model, rows, context)
        errors.append(float(np.square(outputs_of(model, unseen)["y"] - before).mean()))
    assert errors[1] < 0.7 * errors[0]


def test_together_they_miss_no_more_than_is_allowed() -> None:
    model = opened(residual_cnn())
    context = context_of(model)
    alone = rows_of(model, context, Blocks(max_error=1e3))
    assert len(alone) == 2
    worse = max(row.error for row in alone)
    found = list(Blocks(max_error=worse * 1.0001).propose(model, context))
    reasons = [row.reason for row in found if isinstance(row, Refusal)]
    trial = opened(residual_cnn())
    Blocks(recover=False).apply(trial, alone, context)
    together = Probe(model, FEEDS).difference(trial)
    assert len(reasons) == int(together > worse * 1.0001)
    assert all("with others that cost less" in reason for reason in reasons)


def test_without_samples_nothing_is_told() -> None:
    model = opened(residual_cnn())
    context = replace(context_of(model), feeds=())
    found = list(Blocks().propose(model, context))
    assert {row.reason for row in found if isinstance(row, Refusal)} == {
        "what it would cost takes samples to be told"
    }
    assert len(found) == 2


def test_an_excluded_layer_keeps_its_block() -> None:
    model = opened(residual_cnn())
    context = replace(context_of(model), exclude=("c2",))
    rows = rows_of(model, context, Blocks(max_error=1e3))
    assert [row.targets for row in rows] == [("c3", "c4")]


def test_a_plan_for_another_model_is_refused() -> None:
    model = opened(residual_cnn())
    row = Proposal(("nothing",), "blocks", "drop", {"mean": [0.0]})
    with pytest.raises(RecipeError, match="no residual block of 'nothing'"):
        Blocks().apply(model, [row], context_of(model))


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(RecipeError, match="blocks: max_error must be 0 or more, got -1"):
        Blocks(max_error=-1.0)


def test_a_mean_of_other_channels_is_refused() -> None:
    model = opened(residual_cnn())
    row = Proposal(("c1", "c2"), "blocks", "drop", {"mean": [0.0]})
    with pytest.raises(RecipeError, match="blocks: mean must hold 16 numbers, got 1"):
        Blocks().apply(model, [row], context_of(model))
