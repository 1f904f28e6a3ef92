from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from onnxslim_tk.graph.channel_cut import cut_channels
from onnxslim_tk.graph.edit import constant, set_input, values_of
from onnxslim_tk.graph.groups import Group, channel_groups
from onnxslim_tk.graph.model import Model
from onnxslim_tk.measure.observe import observed_shapes
from tests.graph.topologies import TOPOLOGIES
from tests.models import opened, outputs_of, to_proto

Array = NDArray[Any]
Kept = list[tuple[Group, NDArray[np.int64]]]
WEIGHTED = ("Conv", "ConvTranspose", "GRU", "Gather", "Gemm", "LSTM", "MatMul", "RNN", "Transpose")


def groups_of(model: Model, feed: dict[str, Array], attention: str = "heads") -> list[Group]:
    found = channel_groups(model, observed_shapes(model, feed), attention)
    return [group for group in found if isinstance(group, Group)]


def some(group: Group, seed: int) -> NDArray[np.int64]:
    """A random half of every part of a group's channels."""
    rng = np.random.default_rng(seed)
    kept: list[int] = []
    for part in np.unique(group.parts):
        members = np.flatnonzero(group.parts == part)
        kept += rng.choice(members, max(1, len(members) // 2), replace=False).tolist()
    return np.sort(np.array(kept, np.int64))


def mask_channels(model: Model, kept: Kept) -> None:
    """Write zeros where weights make, or read, the channels that go."""
    for group, channels in kept:
        gone = np.setdiff1d(np.arange(group.count), channels)
        for cut in group.view.flow.cuts:
            values = values_of(cut.node.inputs[cut.slot])
            lost = np.isin(group.channels_on(cut.labels), gone)
            if cut.node.op in WEIGHTED and values.dtype == np.float32 and lost.any():
                values = values.copy()
                np.moveaxis(values, cut.axis, 0)[lost] = 0
                set_input(cut.node, cut.slot, constant(model, values))


def cut_and_masked(
    proto: onnx.ModelProto, feed: dict[str, Array], attention: str = "heads"
) -> tuple[Model, Model, Kept]:
    models = opened(proto), opened(proto)
    kept = [
        [(group, some(group, k)) for k, group in enumerate(groups_of(model, feed, attention))]
        for model in models
    ]
    cut_channels(models[0], kept[0])
    mask_channels(models[1], kept[1])
    return *models, kept[0]


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_a_cut_network_equals_the_masked_original(name: str) -> None:
    build, feed, count = TOPOLOGIES[name]
    cut, masked, kept = cut_and_masked(build(), feed)
    assert len(kept) == count, [group.id for group, _ in kept]
    expected = outputs_of(masked, feed)
    got = outputs_of(cut, feed)
    for key, value in expected.items():
        np.testing.assert_allclose(got[key], value, rtol=1e-4, atol=1e-5)
    before, after = (
        sum(np.prod(t.dims) for t in p.graph.initializer) for p in (build(), to_proto(cut))
    )
    assert after < 0.8 * before


@pytest.mark.parametrize(
    "name",
    [
        "attention_of_separate_weights",
        "attention_of_fused_weights",
        "attention_split_in_three",
        "grouped_query_attention",
    ],
)
def test_places_of_values_go_from_all_heads_where_heads_are_to_stay(name: str) -> None:
    build, feed, _ = TOPOLOGIES[name]
    cut, masked, kept = cut_and_masked(build(), feed, "size")
    # No layer reads places of queries and keys: their products sum over them.
    assert [(group.count, len(left), group.attention) for group, left in kept] == [(4, 2, True)]
    expected, got = outputs_of(masked, feed), outputs_of(cut, feed)
    for key, value in expected.items():
        np.testing.assert_allclose(got[key], value, rtol=1e-4, atol=1e-5)
    # Of the layer behind the heads, half of each head's rows are left.
    wo = next(node.inputs[1] for node in cut.graph.nodes if node.outputs[0].name == "m")
    left, whole = kept[0][1], opened(build())
    was = next(node.inputs[1] for node in whole.graph.nodes if node.outputs[0].name == "m")
    rows = [4 * head + place for head in range(4) for place in left]
    np.testing.assert_array_equal(values_of(wo), values_of(was)[rows])
