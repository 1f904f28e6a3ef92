from collections.abc import Iterable, Mapping
from typing import Any

import onnx
import pytest

from onnxslim_tk.graph.edit import output_names
from onnxslim_tk.graph.layers import layers
from onnxslim_tk.graph.model import Model
from onnxslim_tk.graph.regions import Regions, find_regions
from tests.models import model_of, normal, opened, residual_cnn

HEAD = '<ir_version: 8, opset_import: ["": 17, "vendor": 1]>'
WEIGHTS = {"w": normal(0, 4, 4, 1, 1), "v": normal(1, 4, 4, 1, 1)}


def graph(body: str, constants: Mapping[str, Any] | None = None) -> onnx.ModelProto:
    text = f"{HEAD} g (float[1, 4, 8, 8] x) => (float[A, B, C, D] y) {{ {body} }}"
    return model_of(text, {**WEIGHTS, **(constants or {})})


def names_of(model: Model) -> set[str]:
    return set(model.graph.tensors())


def found(
    proto: onnx.ModelProto, chosen: Iterable[str] = (), unknown: Iterable[str] = ()
) -> Regions:
    """Regions of the convolutions ``chosen``, by default all, where ``unknown`` has no range."""
    model = opened(proto)
    wanted = set(chosen)
    nodes = [layer.node for layer in layers(model) if not wanted or layer.id in wanted]
    extents = {name: (-1.0, 1.0) for name in names_of(model) - set(unknown)}
    return find_regions(model.graph, nodes, output_names(model), extents)


def others(regions: Regions) -> list[str]:
    return [node.op for node in regions.others]


def test_a_residual_network_is_one_region() -> None:
    regions = found(residual_cnn())
    assert others(regions) == ["Add", "Add", "GlobalAveragePool", "Flatten"]
    assert [behind.result.name for _, behind in regions.absorbed] == ["r0", "r1", "r2", "r3", "r4"]
    assert len(regions.layers) == 6
    assert len(regions.nodes) == 10
    assert set(regions.grids) == {"x", "r0", "r1", "c2", "r2", "r3", "c4", "r4", "p", "f"}
    assert regions.grids["f"].like == "p"
    made = {name for name, grid in regions.grids.items() if grid.made_in_integers}
    assert made == set(regions.grids) - {"x"}
    assert {regions.grids[name].floor for name in ("r0", "r2")} == {0.0}
    assert regions.grids["c2"].floor is None


def test_what_is_not_chosen_is_an_island_of_float() -> None:
    regions = found(residual_cnn(), chosen=["c1", "c2", "c4"])
    # Of each Add one side comes from floats.
    assert others(regions) == []
    assert set(regions.grids) == {"r0", "r1", "c2", "r3", "c4"}
    assert not regions.grids["r0"].made_in_integers
    assert regions.grids["r0"].floor == 0


def test_a_grid_reaches_through_data_that_only_moves() -> None:
    body = (
        "c = Conv(x, w) p = MaxPool<kernel_shape=[2,2]>(c) t = Transpose<perm=[0,1,3,2]>(p) "
        "y = Conv(t, v)"
    )
    grids = found(graph(body)).grids
    assert {name: grid.like for name, grid in grids.items()} == {
        "x": "x",
        "c": "c",
        "p": "c",
        "t": "c",
        "y": "y",
    }
    assert [name for name, grid in grids.items() if grid.feeds_conv] == ["x", "t"]


@pytest.mark.parametrize(
    ("body", "joined"),
    [
        ("c = Conv(x, w) r = Relu(c) e = Exp(r) y = Conv(e, v)", []),
        ("c = Conv(x, w) s = Sigmoid(c) m = Mul(c, s) y = Conv(m, v)", ["Sigmoid", "Mul"]),
        ("c = Conv(x, w) s = Sigmoid(c) y = Mul(c, s)", []),
        ("c = Conv(x, w) s = Add(c, x) y = Conv(s, v)", []),
        ("c = Conv(x, w) s = Add(c, k) y = Conv(s, v)", []),
        ("c = Conv(x, w) h = HardSwish(c) s = Add(c, h) y = Conv(s, v)", ["Add"]),
        ("c = Conv(x, w) s = vendor.Add(c, c) y = Conv(s, v)", []),
        ("c = Conv(x, w) s, i = MaxPool<kernel_shape=[1,1]>(c) y = Conv(s, v)", []),
        ('c = Conv(x, w) s = Resize<mode="linear">(c, , u) y = Conv(s, v)', []),
        ("y = Conv(x, w) s = Flatten(y) t = MatMul(s, z)", []),
    ],
)
def test_operators_join_where_all_they_read_and_some_reader_is_in_integers(
    body: str, joined: list[str]
) -> None:
    constants: dict[str, Any] = {}
    if ", k)" in body:
        constants["k"] = normal(2, 1, 4, 1, 1)
    if ", u)" in body:
        constants["u"] = normal(2, 4)
    if ", z)" in body:
        constants["z"] = normal(2, 4, 4)
    regions = found(graph(body, constants), chosen=["c", "y"])
    assert others(regions) == joined


def test_saturation_around_zero_is_absorbed() -> None:
    for ends, absorbed in (((0.0, 6.0), True), ((-1.0, 1.0), True), ((0.5, 1.0), False)):
        constants = {"low": normal(0) * 0 + ends[0], "high": normal(0) * 0 + ends[1]}
        body = "c = Conv(x, w) r = Clip(c, low, high) y = Conv(r, v)"
        regions = found(graph(body, constants))
        assert bool(regions.absorbed) is absorbed
        if absorbed:
            assert (regions.grids["r"].floor, regions.grids["r"].ceiling) == ends


def test_a_clip_whose_ends_are_computed_is_not_absorbed() -> None:
    body = "low = ReduceMin<keepdims=0>(x) c = Conv(x, w) r = Clip(c, low) y = Conv(r, v)"
    assert found(graph(body)).absorbed == ()


def test_an_activation_that_is_not_alone_behind_its_operator_is_not_absorbed() -> None:
    body = "c = Conv(x, w) r = Relu(c) s = Add(c, r) y = Conv(s, v)"
    assert found(graph(body)).absorbed == ()
    text = f"""{HEAD} g (float[1, 4, 8, 8] x) => (float[1, 4, 8, 8] c, float[1, 4, 8, 8] y) {{
        c = Conv(x, w)
        y = Relu(c)
    }}"""
    assert found(model_of(text, {"w": WEIGHTS["w"]})).absorbed == ()


def test_where_no_range_is_known_there_is_no_integer_operator() -> None:
    body = "c = Conv(x, w) s = Sigmoid(c) m = Mul(c, s) y = Conv(m, v)"
    assert others(found(graph(body), unknown=["m"])) == []
    assert others(found(graph(body), unknown=["s"])) == []


def test_what_a_hard_swish_reads_needs_no_grid_below_minus_three() -> None:
    body = "c = Conv(x, w) h = HardSwish(c) y = Conv(h, v)"
    assert found(graph(body)).grids["c"].floor == -3
    body = "c = Conv(x, w) h = HardSwish(c) s = Add(c, h) y = Conv(s, v)"
    assert found(graph(body)).grids["c"].floor is None
