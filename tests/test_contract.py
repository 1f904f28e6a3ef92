"""What every method promises, alone and with every other one after it."""

from collections.abc import Callable, Sequence
from functools import cache
from itertools import combinations
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import checker

from onnxslim_tk.graph.edit import drop_unused
from onnxslim_tk.graph.layers import layers
from onnxslim_tk.graph.model import Model, to_proto
from onnxslim_tk.measure.observe import observe
from onnxslim_tk.measure.runtime import Feed, Session
from onnxslim_tk.packing import pack
from onnxslim_tk.passes import PASSES
from onnxslim_tk.plan.policy import asked_for
from onnxslim_tk.plan.proposal import Context, Proposal, Refusal
from onnxslim_tk.plan.targets import ONNXRUNTIME_CPU
from tests.models import chain_cnn, digest, mlp, normal, opened, residual_cnn, with_metadata

MODELS: dict[str, tuple[Callable[[], onnx.ModelProto], tuple[int, ...]]] = {
    "chain_cnn": (chain_cnn, (3, 16, 16)),
    "residual_cnn": (residual_cnn, (3, 16, 16)),
    "mlp": (mlp, (32,)),
}
ALONE = [(name,) for name in PASSES]
PAIRS = list(combinations(PASSES, 2))


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


def proposed(method: Any, model: Model, feeds: Sequence[Feed]) -> tuple[list[Proposal], Context]:
    """What ``method`` proposes; it must only read."""
    statistics = observe(model, feeds, method.observes, 0)
    context = Context(ONNXRUNTIME_CPU, statistics=statistics, feeds=feeds, shapes=statistics.shapes)
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
@pytest.mark.parametrize("names", [*ALONE, *PAIRS], ids="+".join)
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


@pytest.mark.parametrize("model_name", MODELS)
@pytest.mark.parametrize("name", PASSES)
def test_rows_name_layers_and_come_with_the_asked_setting_first(name: str, model_name: str) -> None:
    model = opened(original(model_name))
    rows, _ = proposed(PASSES[name](), model, feeds_of(model_name))
    ids = {layer.id for layer in layers(model)} | {"model"}
    for row in rows:
        assert row.targets
        assert set(row.targets) <= ids
        assert row.error >= 0
    by_targets: dict[tuple[str, ...], list[float]] = {}
    for row in rows:
        by_targets.setdefault(row.targets, []).append(row.error)
    for errors in by_targets.values():
        assert max(errors) <= errors[0] * 1.001 + 1e-12, "a milder setting errs more"
