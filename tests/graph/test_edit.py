import numpy as np
import pytest

from onnxslim_tk.graph.edit import (
    add_node,
    bypass,
    constant,
    constants,
    drop_unused,
    input_at,
    is_constant,
    output_names,
    producer,
    remove_node,
    replace_uses,
    set_input,
    sole_reader,
    take_over,
    values_of,
    variable,
)
from onnxslim_tk.graph.model import Model, Node, bodies
from tests.models import model_of, normal, opened, operators, outputs_of, to_proto, with_metadata

HEAD = '<ir_version: 8, opset_import: ["": 17]>'
X = {"x": normal(0, 4)}


def model(body: str, results: str = "float[4] y") -> Model:
    text = f"{HEAD} g (float[4] x) => ({results}) {{ {body} }}"
    return opened(with_metadata(model_of(text, {"k": normal(1, 4)} if "k)" in body else {})))


def node(model: Model, op: str) -> Node:
    return next(node for _, graph in bodies(model.graph) for node in graph.nodes if node.op == op)


def test_constants_keep_their_rank_and_bear_new_names() -> None:
    edited = model("y = Add(x, k)")
    scalar, turned = constant(edited, np.float32(2)), constant(edited, normal(0, 2, 3).T)
    assert values_of(scalar).shape == ()
    assert values_of(turned).flags.c_contiguous
    assert scalar.name != turned.name
    assert not {scalar.name, turned.name} & set(edited.graph.tensors())


def test_a_node_put_in_between_is_written_in_its_place() -> None:
    edited = model("a = Relu(x) y = Add(a, k)")
    relu, add = node(edited, "Relu"), node(edited, "Add")
    new = add_node(edited, edited.graph, "Neg", [relu.outputs[0]], origin=("a", "node/a"))
    set_input(add, 0, new)
    assert operators(edited) == ["Relu", "Neg", "Add"]
    assert edited.origins[new.name] == ("a", "node/a")
    np.testing.assert_allclose(outputs_of(edited, X)["y"], normal(1, 4) - np.maximum(X["x"], 0))


def test_an_input_may_be_set_one_past_the_end() -> None:
    edited = model("a = Max(x) y = Add(a, k)")
    set_input(node(edited, "Max"), 1, constant(edited, np.float32(0.25)))
    assert variable(edited, node(edited, "Max").outputs[0]).name not in edited.graph.tensors()
    expected = normal(1, 4) + np.maximum(X["x"], 0.25)
    np.testing.assert_allclose(outputs_of(edited, X)["y"], expected)


def test_look_alikes_are_told_apart() -> None:
    edited = model("a = Relu(x) b = Relu(x) y = Add(a, b)")
    first, second = (n for n in edited.graph.nodes if n.op == "Relu")
    second.outputs[0].name = first.outputs[0].name
    replace_uses(second.outputs[0], first.outputs[0])
    remove_node(edited.graph, second)
    assert [n is first for n in edited.graph.nodes] == [True, False]
    np.testing.assert_allclose(outputs_of(edited, X)["y"], 2 * np.maximum(X["x"], 0))


def test_inputs_left_out_are_none() -> None:
    edited = model("z = Constant<value_float = 1.0>() y = Clip(x, , z)")
    clip = node(edited, "Clip")
    assert input_at(clip, 0) is clip.inputs[0]
    assert input_at(clip, 1) is None
    assert input_at(clip, 3) is None
    assert producer(clip.inputs[2]) is node(edited, "Constant")
    assert producer(clip.inputs[0]) is None


def test_a_sole_reader_reads_once_and_nobody_else_does() -> None:
    edited = model("a = Relu(x) b = Neg(a) c = Add(b, b) d = Abs(c) e = Exp(c) y = Add(d, e)")
    outputs = output_names(edited)
    known = edited.graph.tensors()
    assert sole_reader(known["a"], outputs) is node(edited, "Neg")
    assert sole_reader(known["b"], outputs) is None
    assert sole_reader(known["c"], outputs) is None
    assert sole_reader(known["y"], outputs) is None
    edited = model("a = Relu(x) y = Neg(a)", "float[4] y, float[4] a")
    assert sole_reader(edited.graph.tensors()["a"], output_names(edited)) is None


def test_taking_over_keeps_the_last_name_and_answers_to_both() -> None:
    edited = model("a = Neg(x) y = Relu(a)")
    first, last = node(edited, "Neg"), node(edited, "Relu")
    take_over(edited, first, last, edited.graph)
    assert edited.origins == {"y": ("a", "node/a", "y", "node/y")}
    proto = to_proto(edited)
    assert [(n.op_type, n.output[0], n.doc_string) for n in proto.graph.node] == [
        ("Neg", "y", "makes a")
    ]


@pytest.mark.parametrize(
    ("body", "results", "removed", "left"),
    [
        ("a = Identity(x) y = Neg(a)", "float[4] y", True, ["Neg"]),
        ("a = Neg(x) y = Identity(a)", "float[4] y", True, ["Neg"]),
        ("a = Neg(x) y = Identity(a) z = Abs(a)", "float[4] y, float[4] z", True, ["Neg", "Abs"]),
        ("y = Identity(x)", "float[4] y", False, ["Identity"]),
        ("a = Neg(x) y = Identity(a)", "float[4] y, float[4] a", False, ["Neg", "Identity"]),
    ],
)
def test_a_node_that_passes_on_is_bypassed_where_names_allow_it(
    body: str, results: str, removed: bool, left: list[str]
) -> None:
    edited = model(body, results)
    expected = outputs_of(edited, X)
    assert bypass(edited, node(edited, "Identity"), edited.graph) is removed
    assert operators(edited) == left
    for name, value in outputs_of(edited, X).items():
        np.testing.assert_array_equal(value, expected[name])


BODY = """b = Cast<to = 9>(x) one = Constant<value_int = 0>() c = Gather(b, one)
a = Neg(x) u = Exp(x)
y = If(c)<
    then_branch = yes () => (float[4] p) { i = Identity(a) p = Add(i, k) unused = Exp(u) },
    else_branch = no () => (float[4] q) { q = Mul(a, k) }
>"""


def test_bodies_are_edited_like_the_rest() -> None:
    edited = model(BODY)
    expected = outputs_of(edited, X)["y"]
    path, graph = next((p, g) for p, g in bodies(edited.graph) if "then" in p)
    assert path == "y/then_branch/"
    assert bypass(edited, node(edited, "Identity"), graph, path)
    assert [n.op for n in graph.nodes] == ["Add", "Exp"]
    assert output_names(edited) == {"y", "p", "q"}
    assert [t.name for t in constants(edited)] == ["k"]
    assert all(is_constant(t) for t in constants(edited))
    drop_unused(edited)
    assert operators(edited) == ["Cast", "Constant", "Gather", "Neg", "If"]
    np.testing.assert_array_equal(outputs_of(edited, X)["y"], expected)
