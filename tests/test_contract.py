"""What every method promises, alone, with every other one after it, and in threes."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from itertools import combinations
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import checker

from onnxslim_tk.graph.edit import drop_unused
from onnxslim_tk.graph.layers import layers
from onnxslim_tk.graph.model import Model
from onnxslim_tk.measure.observe import observe
from onnxslim_tk.measure.runtime import Feed, Session
from onnxslim_tk.packing import pack
from onnxslim_tk.passes import PASSES
from onnxslim_tk.passes.blocks import Blocks
from onnxslim_tk.passes.channels import Channels
from onnxslim_tk.passes.dynamic_int8 import DynamicInt8
from onnxslim_tk.passes.factorize import Factorize
from onnxslim_tk.passes.fuse import Fuse
from onnxslim_tk.passes.operators import Operators
from onnxslim_tk.passes.quantize import Quantize
from onnxslim_tk.passes.share import Share
from onnxslim_tk.passes.sparsify import Sparsify
from onnxslim_tk.plan.knapsack import alternatives
from onnxslim_tk.plan.policy import asked_for
from onnxslim_tk.plan.proposal import Context, Proposal, Refusal
from onnxslim_tk.plan.targets import ONNXRUNTIME_CPU, Target
from tests.models import (
    CONTEXT,
    SLOW_FLOATS,
    chain_cnn,
    digest,
    mlp,
    mobile_cnn,
    model_of,
    normal,
    opened,
    residual_cnn,
    to_proto,
    with_metadata,
)
from tests.rows import IMAGES, asked, refusals_of, seen

MODELS: dict[str, tuple[Callable[[], onnx.ModelProto], tuple[int, ...]]] = {
    "chain_cnn": (chain_cnn, (3, 16, 16)),
    "residual_cnn": (residual_cnn, (3, 16, 16)),
    "mlp": (mlp, (32,)),
    "mobile_cnn": (mobile_cnn, (3, 16, 16)),
}
ALONE = [(name,) for name in PASSES]
PAIRS = list(combinations(PASSES, 2))
TRIPLES = [
    ("channels", "sparsify", "quantize"),
    ("factorize", "share", "quantize"),
    ("blocks", "channels", "share"),
]
# A step that small layers reach, and settings that find something in small models.
FINE = replace(ONNXRUNTIME_CPU, channel_step=4)
# Two thin layers of a small model are no faster where every node takes a start.
NO_START = replace(
    FINE, floats={kind: replace(speed, start=0.0) for kind, speed in FINE.floats.items()}
)
SPLIT = Factorize(max_error=1.0)
SETTINGS: dict[str, tuple[Any, str]] = {
    "fuse": (Fuse(), "chain_cnn"),
    "factorize": (SPLIT, "mlp"),
    "channels": (Channels(), "residual_cnn"),
    "blocks": (Blocks(max_error=10.0), "residual_cnn"),
    "operators": (Operators(max_error=10.0), "mobile_cnn"),
    "sparsify": (Sparsify(), "mlp"),
    "sparsify by one threshold": (Sparsify(scope="global"), "mlp"),
    "share": (Share(), "mlp"),
    "share of floats": (Share(scaled=False), "mlp"),
    "share of vectors": (Share(16, dimensions=2), "mlp"),
    "share of all of int8": (Share(256), "mlp"),
    "quantize": (Quantize(), "residual_cnn"),
    "quantize of weights": (Quantize(activations=False), "residual_cnn"),
    "dynamic_int8": (DynamicInt8(least_macs=0), "mlp"),
}


@cache
def feeds_of(name: str) -> list[Feed]:
    """Random inputs whose values hang together, as those of pictures and sounds do."""
    shape = MODELS[name][1]
    size = int(np.prod(shape))
    values = normal(0, 24, 12) @ normal(1, 12, size) / 3 + 0.3 * normal(2, 24, size) + 0.2
    return [{"x": values[k : k + 4].reshape(4, *shape).astype(np.float32)} for k in range(0, 24, 4)]


def original(name: str) -> onnx.ModelProto:
    proto = with_metadata(MODELS[name][0]())
    proto.graph.metadata_props.add(key="task", value="digits")
    return proto


def proposed(
    method: Any, model: Model, feeds: Sequence[Feed], target: Target = ONNXRUNTIME_CPU
) -> tuple[list[Proposal], Context]:
    """What ``method`` proposes; it must only read."""
    statistics = observe(model, feeds, method.observes, 0)
    context = Context(target, statistics=statistics, feeds=feeds, shapes=statistics.shapes)
    before = digest(model)
    found = list(method.propose(model, context))
    assert digest(model) == before, f"{method.name} changes the model that it looks at"
    for row in found:
        assert row.method == method.name
        if isinstance(row, Refusal):
            assert row.reason
    return [row for row in found if isinstance(row, Proposal)], context


def carried_out(names: Sequence[str], model_name: str) -> tuple[Model, list[list[Proposal]]]:
    model, feeds = opened(original(model_name)), feeds_of(model_name)
    done = []
    for name in names:
        method = PASSES[name]()
        rows, context = proposed(method, model, feeds)
        chosen = asked_for(rows)
        method.apply(model, chosen, context)
        drop_unused(model)
        done.append(chosen)
    return model, done


@cache
def first_run(names: tuple[str, ...], model_name: str) -> tuple[Model, list[list[Proposal]]]:
    """A run that several tests look at."""
    return carried_out(names, model_name)


def packed_size(proto: onnx.ModelProto) -> int:
    pack(proto)
    return int(proto.ByteSize())


@pytest.mark.parametrize("model_name", MODELS)
@pytest.mark.parametrize("names", [*ALONE, *PAIRS, *TRIPLES], ids="+".join)
def test_methods_keep_what_every_model_must_keep(names: tuple[str, ...], model_name: str) -> None:
    before = original(model_name)
    model, done = first_run(names, model_name)
    after = to_proto(model)
    checker.check_model(after, full_check=True)
    assert list(after.graph.input) == list(before.graph.input)
    assert list(after.graph.output) == list(before.graph.output)
    assert list(after.metadata_props) == list(before.metadata_props)
    assert list(after.graph.metadata_props) == list(before.graph.metadata_props)
    assert (after.producer_name, after.doc_string) == (before.producer_name, before.doc_string)
    for feed in feeds_of(model_name)[:1]:
        found = Session(after.SerializeToString()).run(feed)["y"]
        expected = Session(before.SerializeToString()).run(feed)["y"]
        assert found.shape == expected.shape
        assert np.isfinite(found).all()
        if all(row.error == 0 for rows in done for row in rows):
            np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)
        # Any batch must still run.
        one = {"x": feed["x"][:1]}
        assert Session(after.SerializeToString()).run(one)["y"].shape == (1, found.shape[1])
    # Whatever is left of a layer answers to its original name.
    known = {name for layer in layers(opened(before)) for name in layer.names}
    assert all(known & set(layer.names) for layer in layers(model))


@pytest.mark.parametrize("model_name", MODELS)
@pytest.mark.parametrize("names", [*ALONE, tuple(PASSES)], ids="+".join)
def test_the_same_seed_gives_the_same_bytes(names: tuple[str, ...], model_name: str) -> None:
    first, second = first_run(names, model_name), carried_out(names, model_name)
    assert first[1] == second[1]
    assert digest(first[0]) == digest(second[0])


@pytest.mark.parametrize("model_name", MODELS)
@pytest.mark.parametrize("name", PASSES)
def test_announced_bytes_are_saved_bytes(name: str, model_name: str) -> None:
    model, (chosen,) = first_run((name,), model_name)
    announced = sum(row.bytes_saved for row in chosen)
    saved = packed_size(to_proto(opened(original(model_name)))) - packed_size(to_proto(model))
    assert abs(announced - saved) <= max(0.15 * abs(saved), 600 * len(chosen))


@pytest.mark.parametrize(
    ("method", "model_name"),
    [
        *(pytest.param(PASSES[n](), m, id=f"{n}-{m}") for n in PASSES for m in MODELS),
        *(pytest.param(method, m, id=f"{n}, {m}") for n, (method, m) in SETTINGS.items()),
    ],
)
def test_rows_name_layers_and_come_with_the_asked_setting_first(
    method: Any, model_name: str
) -> None:
    model = opened(original(model_name))
    target = NO_START if method.name == "factorize" else FINE
    rows, _ = proposed(method, model, feeds_of(model_name), target)
    ids = {layer.id for layer in layers(model)} | {"model"}
    for row in rows:
        assert row.targets
        assert set(row.targets) <= ids
        assert row.error >= 0
    for asked_row, *others in alternatives(rows):
        for row in others:
            coarser = row.bytes_saved > asked_row.bytes_saved
            slower = row.cost_saved < asked_row.cost_saved
            assert (coarser and not slower) or row.error <= asked_row.error * 1.001 + 1e-12


@pytest.mark.parametrize("name", SETTINGS)
def test_rows_may_go_through_json(name: str) -> None:
    method, model_name = SETTINGS[name]
    first, second = opened(original(model_name)), opened(original(model_name))
    # On a target whose float products are slow, small ones gain by integers too.
    target = {"dynamic_int8": SLOW_FLOATS, "factorize": NO_START}.get(method.name, FINE)
    rows, context = proposed(method, first, feeds_of(model_name), target)
    chosen = asked_for(rows)
    assert chosen
    method.apply(first, chosen, context)
    read = [replace(row, details=json.loads(json.dumps(row.details))) for row in chosen]
    method.apply(second, read, context)
    assert digest(first) == digest(second)
    assert digest(first) != digest(opened(original(model_name)))


@pytest.mark.parametrize("method", [SPLIT, Sparsify(0.7), Share()], ids=lambda m: str(m.name))
def test_announced_bytes_of_weights_are_saved_to_two_percent(method: Any) -> None:
    sizes = []
    rows: list[Proposal] = []
    for wanted in (False, True):
        model = opened(residual_cnn())
        context = seen(model, IMAGES, replace(CONTEXT, target=FINE))
        rows = asked(model, context, method) if wanted else []
        method.apply(model, rows, context)
        proto = to_proto(model)
        tables = sum(p.bytes_after for p in pack(proto) if p.encoding == "tables")
        sizes.append(proto.ByteSize() - tables)
    assert rows
    announced = sum(row.bytes_saved for row in rows)
    assert sizes[0] - sizes[1] == pytest.approx(announced, rel=0.02)


@pytest.mark.parametrize(
    ("method", "tuned"),
    [(SPLIT, 0.25), (Sparsify(), 0.25), (Share(), 4)],
    ids=lambda m: str(getattr(m, "name", "")),
)
def test_a_layer_left_out_or_tuned_is_treated_so(method: Any, tuned: float) -> None:
    context = Context(FINE, exclude=("m1",), overrides=(("g2", {method.name: tuned}),))
    usual = {row.targets[0]: row.setting for row in asked(opened(mlp()), Context(FINE), method)}
    found = {row.targets[0]: row.setting for row in asked(opened(mlp()), context, method)}
    assert {"m1", "g2"} <= usual.keys()
    assert found == {k: v for k, v in usual.items() if k != "m1"} | {"g2": tuned}
    assert usual["g2"] != tuned


HOLED = np.where(normal(0, 32, 32) > 2, np.nan, 1).astype(np.float32)
OBSTACLES: dict[str, tuple[str, dict[str, Any]]] = {
    "the weight is shared with another node": (
        "a = MatMul(x, w) y = MatMul(a, w)",
        {"w": normal(1, 32, 32)},
    ),
    "the weight is stored behind a scale": (
        "d = DequantizeLinear(w, s) y = MatMul(x, d)",
        {"w": normal(1, 32, 32, scale=50).astype(np.int8), "s": np.float32(0.1)},
    ),
    "the weight holds values that are not finite": ("y = MatMul(x, w)", {"w": HOLED}),
}


@pytest.mark.parametrize("reason", OBSTACLES)
@pytest.mark.parametrize("method", [SPLIT, Sparsify(), Share()], ids=lambda m: str(m.name))
def test_a_weight_that_cannot_be_replaced_is_refused(method: Any, reason: str) -> None:
    body, constants = OBSTACLES[reason]
    text = f"""<ir_version: 8, opset_import: ["": 17]>
    g (float[N, 32] x) => (float[N, 32] y) {{ {body} }}"""
    model = opened(model_of(text, constants))
    products = [node.outputs[0].name for node in model.graph.nodes if node.op == "MatMul"]
    assert refusals_of(model, CONTEXT, method) == dict.fromkeys(products, reason)
    assert not asked(model, CONTEXT, method)
