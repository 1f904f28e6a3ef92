import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from onnxslim_tk.packing.alias import alias

from .conftest import Build

PAIR = "g (float[N,64] x) => (float[N,64] y) { a = MatMul(x, w) y = MatMul(a, v) }"
BRANCHES = """g (bool c, float[N,64] x) => (float[N,64] y) {
    y = If (c) <
        then_branch = t () => (float[N,64] p) { p = MatMul(x, v) },
        else_branch = e () => (float[N,64] q) { q = MatMul(x, u) }
    >
}"""


def weight() -> TensorProto:
    return numpy_helper.from_array(np.eye(64, dtype=np.float32))


def put(graph: onnx.GraphProto, name: str) -> None:
    graph.initializer.add().CopyFrom(weight())
    graph.initializer[-1].name = name


def branch(model: onnx.ModelProto, name: str) -> onnx.GraphProto:
    found = (a.g for node in model.graph.node for a in node.attribute if a.name == name)
    return next(found)


def test_stores_equal_tensors_once(build: Build) -> None:
    eye = np.eye(64, dtype=np.float32)
    model = build(PAIR, w=eye, v=eye)
    model.graph.value_info.append(onnx.helper.make_tensor_value_info("v", 1, [64, 64]))
    rows = alias(model)
    assert [row.name for row in rows] == ["v"]
    assert rows[0].bytes_before - rows[0].bytes_after > eye.nbytes
    assert [t.name for t in model.graph.initializer] == ["w"]
    assert [node.input[1] for node in model.graph.node] == ["w", "w"]
    assert not model.graph.value_info


def test_minds_type_shape_and_bits(build: Build) -> None:
    zeros = np.zeros((64, 64), np.float32)
    for other in (-zeros, zeros.astype(np.int32), zeros.reshape(-1)):
        assert alias(build(PAIR, w=zeros, v=other)) == []


def test_sees_equal_bits_in_other_fields(build: Build) -> None:
    eye = np.eye(64, dtype=np.float32)
    model = build(PAIR, w=eye)
    tensor = onnx.helper.make_tensor("v", TensorProto.FLOAT, eye.shape, eye.reshape(-1).tolist())
    model.graph.initializer.append(tensor)
    assert [row.name for row in alias(model)] == ["v"]


def test_keeps_inputs_and_outputs(build: Build) -> None:
    text = "g (float[N,64] x, float[64,64] w) => (float[N,64] y, float[64,64] v)"
    eye = np.eye(64, dtype=np.float32)
    model = build(text + "{ a = MatMul(x, w) y = MatMul(a, v) }", w=eye, v=eye)
    assert alias(model) == []


def test_keeps_a_copy_whose_new_name_costs_more(build: Build) -> None:
    text = "g (float[N] x) => (float[N] y) { a = Add(x, a_name_of_many_letters"
    text += "_that_takes_more_bytes_than_the_copy) y = Add(a, b) }"
    name = "a_name_of_many_letters_that_takes_more_bytes_than_the_copy"
    one = np.ones(1, np.float32)
    assert alias(build(text, **{name: one, "b": one})) == []


def test_a_body_reads_the_weight_of_the_graph_around_it(build: Build) -> None:
    model = build(BRANCHES)
    put(model.graph, "w")
    put(branch(model, "then_branch"), "v")
    put(branch(model, "else_branch"), "u")
    assert [row.name for row in alias(model)] == ["v", "u"]
    assert branch(model, "then_branch").node[0].input[1] == "w"
    assert not branch(model, "then_branch").initializer
    assert [t.name for t in model.graph.initializer] == ["w"]


def test_weights_of_sibling_bodies_move_to_the_graph_around_both(build: Build) -> None:
    model = build(BRANCHES)
    put(branch(model, "then_branch"), "v")
    put(branch(model, "else_branch"), "u")
    assert [row.name for row in alias(model)] == ["u"]
    assert [t.name for t in model.graph.initializer] == ["v"]
    assert branch(model, "else_branch").node[0].input[1] == "v"
    onnx.checker.check_model(model, full_check=True)


def test_leaves_names_that_bodies_share(build: Build) -> None:
    model = build(BRANCHES.replace("u)", "v)"))
    put(branch(model, "then_branch"), "v")
    put(branch(model, "else_branch"), "v")
    before = model.SerializeToString()
    assert alias(model) == []
    assert model.SerializeToString() == before
