import random

import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from onnxslim_tk.errors import ModelError
from onnxslim_tk.graph.edit import add_node
from onnxslim_tk.graph.order import captured_names, ordered, sort_nodes
from tests.models import chain_cnn, model_of, opened


def graph_of(edges: dict[str, list[str]]) -> onnx.GraphProto:
    nodes = [helper.make_node("Sum", inputs, [name]) for name, inputs in edges.items()]
    return onnx.GraphProto(node=nodes)


def names(graph: onnx.GraphProto) -> list[str]:
    return [node.output[0] for node in graph.node]


def test_what_is_in_order_stays_as_it_is() -> None:
    graph = graph_of({"d": ["x"], "a": ["x"], "c": ["a", "d"], "b": ["a"]})
    sort_nodes(graph)
    assert names(graph) == ["d", "a", "c", "b"]


def test_only_what_must_moves() -> None:
    graph = graph_of({"a": ["x"], "late": ["z"], "b": ["a"], "z": ["x"], "c": ["b"]})
    sort_nodes(graph)
    assert names(graph) == ["a", "b", "z", "late", "c"]


@given(st.integers(1, 30), st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=40)
def test_any_order_becomes_a_valid_one(count: int, rng: random.Random) -> None:
    edges = {
        f"n{k}": [f"n{rng.randrange(k)}" for _ in range(rng.randrange(3)) if k]
        for k in range(count)
    }
    keys = list(edges)
    rng.shuffle(keys)
    graph = graph_of({key: edges[key] for key in keys})
    sort_nodes(graph)
    seen: set[str] = set()
    for node in graph.node:
        assert seen.issuperset(node.input)
        seen.update(node.output)
    assert seen == set(edges)


def test_a_cycle_is_named() -> None:
    graph = graph_of({"a": ["x"], "b": ["a", "c"], "c": ["b"]})
    with pytest.raises(ModelError, match="model: the graph has a cycle through 'b'"):
        sort_nodes(graph)


def test_a_node_that_reads_itself_is_a_cycle() -> None:
    with pytest.raises(ModelError, match="cycle through 'a'"):
        sort_nodes(graph_of({"a": ["a"]}))


CAPTURE = """<ir_version: 8, opset_import: ["": 17]>
g (bool c, float[2] x) => (float[2] y) {
    y = If(c)<
        then_branch = yes () => (float[2] p) { t = Relu(late) p = Add(t, x) },
        else_branch = no () => (float[2] q) {
            q = If(c)<
                then_branch = deep () => (float[2] r) { r = Neg(later) },
                else_branch = flat () => (float[2] s) { s = Neg(x) }
            >
        }
    >
    late = Abs(x)
    later = Exp(x)
}"""


def test_bodies_wait_for_what_they_take_from_outside() -> None:
    proto = model_of(CAPTURE)
    assert captured_names(proto.graph.node[0]) == {"c", "x", "late", "later"}
    sort_nodes(proto.graph)
    assert names(proto.graph) == ["late", "later", "y"]


def test_the_editable_graph_is_ordered_alike() -> None:
    model = opened(model_of(CAPTURE))
    assert [n.outputs[0].name for n in ordered(model.graph)] == ["late", "later", "y"]
    model = opened(chain_cnn())
    nodes = list(model.graph.nodes)
    assert all(a is b for a, b in zip(ordered(model.graph), nodes, strict=True))
    relu = next(n for n in nodes if n.op == "Relu")
    new = add_node(model, model.graph, "Neg", [relu.inputs[0]])
    relu.inputs[0] = new
    places = {id(n): k for k, n in enumerate(ordered(model.graph))}
    assert places[id(new.inputs[0])] < places[id(relu)]
