from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from onnx import TensorProto, checker, helper, numpy_helper

from onnxslim_tk.errors import ModelError
from onnxslim_tk.graph.edit import add_node, constant, drop_unused, values_of
from onnxslim_tk.graph.layers import layers
from onnxslim_tk.graph.model import bodies, from_proto
from tests.models import chain_cnn, mlp, model_of, normal, opened, outputs, to_proto, with_metadata

HEAD = '<ir_version: 8, opset_import: ["": 17]>'
CHOICE = f"""{HEAD}
g (bool c, float[N, 4] x) => (float[N, 4] y, float[N, 4] z) {{
    z = MatMul(x, w)
    y = If(c)<
        then_branch = yes () => (float[N, 4] p) {{
            inner = MatMul(x, w)
            p = Add(inner, b)
        }},
        else_branch = no () => (float[N, 4] q) {{
            inner = Relu(x)
            q = MatMul(inner, w)
        }}
    >
}}"""
WEIGHTS = {"w": normal(0, 4, 4), "b": normal(1, 4)}
TRUE, FALSE = np.array(True), np.array(False)


def round_trip(proto: onnx.ModelProto) -> onnx.ModelProto:
    original = onnx.ModelProto.FromString(proto.SerializeToString())
    return to_proto(from_proto(original, b""))


def custom(nodes: list[onnx.NodeProto], opset: int = 17, **settings: Any) -> onnx.ModelProto:
    """``x`` to ``y``, both of two floats, with an operator set of a vendor."""
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("vendor", 3)]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])
    graph = helper.make_graph(nodes, "g", [x], [y])
    return helper.make_model(graph, opset_imports=imports, ir_version=10, **settings)


def test_keeps_header_and_notes() -> None:
    proto = with_metadata(chain_cnn())
    proto.producer_version, proto.domain, proto.model_version = "1.2", "org.vendor", 7
    proto.graph.doc_string, proto.graph.name = "a graph", "名前"
    proto.graph.metadata_props.add(key="task", value="digits")
    proto.graph.node[1].metadata_props.add(key="scope", value="encoder/0")
    proto.opset_import.add(domain="vendor", version=3)
    annotation = proto.graph.quantization_annotation.add(tensor_name="w1")
    annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="b2")
    back = round_trip(proto)
    for name in ("producer_name", "producer_version", "domain", "model_version", "doc_string"):
        assert getattr(back, name) == getattr(proto, name)
    assert back.ir_version == proto.ir_version
    assert list(back.metadata_props) == list(proto.metadata_props)
    assert list(back.opset_import) == list(proto.opset_import)
    for name in ("doc_string", "name", "metadata_props", "quantization_annotation"):
        assert getattr(back.graph, name) == getattr(proto.graph, name)
    assert list(back.graph.node) == list(proto.graph.node)
    weights = {tensor.name: tensor for tensor in proto.graph.initializer}
    assert {tensor.name: tensor for tensor in back.graph.initializer} == weights


def test_keeps_all_that_inputs_and_outputs_say() -> None:
    proto = mlp()
    image = proto.graph.input[0]
    image.doc_string, image.type.denotation = "frames", "IMAGE"
    image.type.tensor_type.shape.dim[0].denotation = "DATA_BATCH"
    proto.graph.output[0].metadata_props.add(key="unit", value="dB")
    back = round_trip(proto)
    assert list(back.graph.input) == list(proto.graph.input)
    assert list(back.graph.output) == list(proto.graph.output)
    assert back.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "N"


def test_keeps_inputs_and_outputs_that_are_no_tensors() -> None:
    tensor = helper.make_tensor_type_proto(TensorProto.FLOAT, ["N", 3])
    maps = onnx.TypeProto()
    maps.map_type.key_type = TensorProto.INT64
    maps.map_type.value_type.CopyFrom(helper.make_tensor_type_proto(TensorProto.FLOAT, []))
    for kind in (
        helper.make_optional_type_proto(tensor),
        helper.make_sequence_type_proto(tensor),
        helper.make_optional_type_proto(helper.make_sequence_type_proto(tensor)),
        helper.make_sequence_type_proto(maps),
        maps,
    ):
        proto = custom([helper.make_node("Identity", ["x"], ["y"])])
        for value in (proto.graph.input[0], proto.graph.output[0]):
            value.type.CopyFrom(kind)
        back = round_trip(proto)
        assert back.graph.input[0].type == kind
        assert back.graph.output[0].type == kind


def test_keeps_a_body_whose_output_has_a_type_that_says_nothing() -> None:
    proto = model_of(CHOICE, WEIGHTS)
    choice = next(node for node in proto.graph.node if node.op_type == "If")
    kind = onnx.TypeProto(denotation="")
    for attribute in choice.attribute:
        attribute.g.output[0].type.CopyFrom(kind)
    back = round_trip(proto)
    choice = next(node for node in back.graph.node if node.op_type == "If")
    assert [attribute.g.output[0].type for attribute in choice.attribute] == [kind, kind]


def test_keeps_attributes_that_the_graph_library_drops() -> None:
    kind = helper.make_tensor_type_proto(TensorProto.FLOAT, [2])
    node = helper.make_node("Odd", ["x"], ["y"], domain="vendor", type=kind, name="n", k=3)
    node.attribute.add(name="axes", type=onnx.AttributeProto.INTS)
    node.attribute.add(name="blob", type=onnx.AttributeProto.STRING, s=b"\xff\x00")
    back = round_trip(custom([node]))
    before = {a.name: a for a in node.attribute}
    assert {a.name: a for a in back.graph.node[0].attribute} == before


def test_keeps_local_functions_as_they_are() -> None:
    inner = helper.make_node("Relu", ["a"], ["b"], name="relu", doc_string="cuts")
    function = helper.make_function(
        "vendor", "F", ["a"], ["b"], [inner], [helper.make_opsetid("", 17)], doc_string="a relu"
    )
    function.overload = "two"
    function.metadata_props.add(key="k", value="v")
    node = helper.make_node("F", ["x"], ["y"], domain="vendor", overload="two")
    proto = custom([node], functions=[function])
    back = round_trip(proto)
    assert list(back.functions) == [function]
    assert back.graph.node[0].overload == "two"
    np.testing.assert_array_equal(
        outputs(back, {"x": np.array([-1, 1], np.float32)})["y"], np.array([0, 1], np.float32)
    )


def test_weights_that_bodies_share_with_the_outer_graph_are_stored_once() -> None:
    proto = model_of(CHOICE, WEIGHTS)
    back = round_trip(proto)
    assert [t.name for t in back.graph.initializer] == ["w", "b"]
    branches = [a.g for node in back.graph.node for a in node.attribute]
    assert [len(branch.initializer) for branch in branches] == [0, 0]
    for c in (TRUE, FALSE):
        feed = {"c": c, "x": normal(2, 3, 4)}
        expected = outputs(proto, feed)
        for name, value in outputs(back, feed).items():
            np.testing.assert_array_equal(value, expected[name])
    assert round_trip(back).ByteSize() == back.ByteSize()


def test_weights_that_a_loop_shares_with_the_outer_graph_are_stored_once() -> None:
    text = f"""{HEAD}
    g (int64 n, float[4, 4] x) => (float[4, 4] y) {{
        m = MatMul(x, w)
        yes = Constant<value = bool {{1}}>()
        y = Loop(n, yes, m)<
            body = step (int64 i, bool c, float[4, 4] s) => (bool d, float[4, 4] t) {{
                d = Identity(c)
                u = MatMul(s, w)
                t = Add(u, b)
            }}
        >
    }}"""
    proto = model_of(text, {"w": normal(0, 4, 4, scale=0.3), "b": normal(1, 4)})
    model = opened(onnx.ModelProto.FromString(proto.SerializeToString()))
    assert [layer.id for layer in layers(model)] == ["m", "y/body/u"]
    assert all(layer.is_shared for layer in layers(model))
    back = to_proto(model.copy())
    assert sorted(t.name for t in back.graph.initializer) == ["b", "w"]
    feed = {"n": np.array(3), "x": normal(2, 4, 4)}
    np.testing.assert_array_equal(outputs(back, feed)["y"], outputs(proto, feed)["y"])


def test_a_weight_of_a_middle_body_is_not_copied_into_inner_ones() -> None:
    text = f"""{HEAD}
    g (bool c, float[N, 4] x) => (float[N, 4] y) {{
        y = If(c)<
            then_branch = yes () => (float[N, 4] p) <float[4] v = {{1, 2, 3, 4}}> {{
                o = Add(x, v)
                p = If(c)<
                    then_branch = deep () => (float[N, 4] d) {{ d = Mul(o, v) }},
                    else_branch = deeper () => (float[N, 4] e) {{ e = Sub(o, v) }}
                >
            }},
            else_branch = no () => (float[N, 4] q) {{ q = Relu(x) }}
        >
    }}"""
    back = round_trip(model_of(text))
    stored = [
        tensor.name
        for _, graph in bodies(opened(back).graph)
        for tensor in graph.tensors().values()
        if isinstance(tensor, gs.Constant)
    ]
    assert stored.count("v") == 3
    middle = back.graph.node[0].attribute[0].g
    deep = [a.g for node in middle.node for a in node.attribute]
    assert [len(g.initializer) for g in (back.graph, middle, *deep)] == [0, 1, 0, 0]
    checker.check_model(back, full_check=True)


def test_sibling_bodies_may_use_equal_names() -> None:
    proto = model_of(CHOICE, WEIGHTS)
    model = opened(proto)
    found = [layer.id for layer in layers(model)]
    assert found == ["z", "y/then_branch/inner", "y/else_branch/q"]
    inner = {path: graph for path, graph in bodies(model.graph) if path}
    first, second = (graph.tensors()["inner"] for graph in inner.values())
    assert first is not second


def test_a_body_weight_that_hides_an_outer_one_keeps_its_own_values() -> None:
    text = f"""{HEAD}
    g (bool c, float[2, 2] x) => (float[2, 2] y, float[2, 2] z) {{
        z = MatMul(x, w)
        y = If(c)<
            then_branch = t () => (float[2, 2] p) <float[2, 2] w = {{5, 5, 5, 5}}> {{
                p = MatMul(x, w)
            }},
            else_branch = e () => (float[2, 2] q) {{ q = Relu(x) }}
        >
    }}"""
    proto = model_of(text, {"w": np.ones((2, 2), np.float32)})
    feed = {"c": TRUE, "x": np.ones((2, 2), np.float32)}
    expected = outputs(proto, feed)
    assert expected["y"][0, 0] == 10
    found = outputs(round_trip(proto), feed)
    np.testing.assert_array_equal(found["y"], expected["y"])
    np.testing.assert_array_equal(found["z"], expected["z"])


def test_bodies_keep_notes_and_metadata() -> None:
    proto = model_of(CHOICE, WEIGHTS)
    branch = proto.graph.node[1].attribute[0].g
    branch.node[0].doc_string = "inside"
    branch.metadata_props.add(key="k", value="v")
    branch.quantization_annotation.add(tensor_name="inner")
    branch.output[0].doc_string = "given out"
    back = round_trip(proto).graph.node[1].attribute[0].g
    assert back.node[0].doc_string == "inside"
    assert back.metadata_props == branch.metadata_props
    assert back.quantization_annotation == branch.quantization_annotation
    assert back.output == branch.output


def test_nodes_whose_first_output_is_left_out_stay_apart() -> None:
    nodes = []
    for k, source in enumerate(("x", "a")):
        node = helper.make_node("Odd", [source], ["", "ay"[k]], domain="vendor", name=f"n{k}")
        node.doc_string = f"node {k}"
        nodes.append(node)
    proto = custom(nodes)
    model = opened(proto)
    assert set(model.origins) == {"a", "y"}
    assert [node.doc_string for node in to_proto(model).graph.node] == ["node 0", "node 1"]


def test_optional_inputs_that_are_left_out_stay_so() -> None:
    text = f"""{HEAD}
    g (float[N] x) => (float[N] y) {{
        y = Clip(x, , top)
    }}"""
    proto = model_of(text, {"top": np.float32(0.5)})
    back = round_trip(proto)
    assert list(back.graph.node[0].input) == ["x", "", "top"]
    assert not opened(back).taken.isdisjoint({"x", "top", "y"})


def test_initializers_that_are_inputs_too_become_constants() -> None:
    proto = mlp()
    proto.ir_version = 3
    expected = outputs(mlp(), feed := {"x": normal(3, 5, 32)})
    for tensor in proto.graph.initializer:
        value = helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        proto.graph.input.append(value)
    back = round_trip(proto)
    assert [value.name for value in back.graph.input] == ["x"]
    # Version 3 doesn't allow initializers that are no inputs.
    assert back.ir_version == 4
    np.testing.assert_array_equal(outputs(back, feed)["y"], expected["y"])


def test_nodes_without_a_name_and_with_unicode_ones_have_ids() -> None:
    text = f"{HEAD} g (float[N, 4] x) => (float[N, 4] y) {{ m = MatMul(x, w) y = MatMul(m, v) }}"
    proto = model_of(text, {"w": normal(0, 4, 4), "v": normal(1, 4, 4)})
    proto.graph.node[1].name = "слой/é"
    model = opened(proto)
    assert [layer.names for layer in layers(model)] == [("m",), ("y", "слой/é")]
    assert [node.name for node in to_proto(model).graph.node] == ["", "слой/é"]


def test_scalars_keep_rank_zero() -> None:
    text = f"{HEAD} g (float[N] x) => (float[N] y) {{ m = Mul(x, s) y = Add(m, t) }}"
    model = opened(model_of(text, {"s": np.float32(2), "t": np.array([3], np.float32)}))
    values_of(model.graph.tensors()["s"])
    model.graph.nodes[1].inputs[1] = constant(model, np.float32(4))
    dims = {t.name: list(t.dims) for t in to_proto(model).graph.initializer}
    assert list(dims.values()) == [[], []]


@pytest.mark.parametrize(
    "kind",
    ["BFLOAT16", "FLOAT16", "FLOAT8E4M3FN", "FLOAT8E5M2", "INT4", "UINT4", "INT8", "BOOL"],
)
def test_keeps_constants_of_every_type_to_the_bit(kind: str) -> None:
    element = getattr(TensorProto, kind)
    wide = {"BFLOAT16": 2, "FLOAT16": 2, "INT4": 0.5, "UINT4": 0.5}.get(kind, 1)
    raw = bytes([1, 0, 1, 1, 0, 1, 1, 0])[: int(4 * wide)]
    tensor = onnx.TensorProto(name="w", data_type=element, dims=[4], raw_data=raw)
    proto = custom([helper.make_node("Cast", ["w"], ["y"], to=1)], opset=21)
    proto.graph.initializer.append(tensor)
    assert list(round_trip(proto).graph.initializer) == [tensor]


def test_a_copy_never_shows_edits_of_the_other() -> None:
    model = opened(with_metadata(chain_cnn()))
    before = to_proto(model).SerializeToString()
    twin = model.copy()
    assert to_proto(twin).SerializeToString() == before
    node = twin.graph.nodes[0]
    node.attrs["pads"][0] = 7
    node.attrs["strides"] = [2, 2]
    node.inputs[1].values[:] = 0
    node.inputs[1].name = "renamed"
    twin.origins["c1"] = ("changed",)
    twin.notes["c1"].doc_string = "changed"
    twin.header.producer_name = "changed"
    twin.fresh_name()
    assert to_proto(model).SerializeToString() == before
    assert model.origins["c1"] == ("c1", "node/c1")
    # The other way round, with the weights of the first read meanwhile.
    for tensor in model.graph.tensors().values():
        if isinstance(tensor, gs.Constant):
            values_of(tensor)
    other = model.copy()
    model.graph.nodes[0].attrs["pads"][0] = 5
    model.graph.nodes[0].inputs[1].values[:] = 1
    assert to_proto(other).SerializeToString() == before


def test_a_copy_goes_on_with_names_that_the_first_has_not_used() -> None:
    model = opened(mlp())
    first = model.fresh_name()
    assert model.copy().fresh_name() != first


def test_fresh_names_never_meet_names_of_the_model() -> None:
    proto = model_of(CHOICE, WEIGHTS)
    proto.graph.node[1].attribute[0].g.node[0].output[0] = "_a"
    proto.graph.node[1].attribute[0].g.node[1].input[0] = "_a"
    proto.graph.initializer[0].name = "_b"
    for node in (proto.graph.node[0], proto.graph.node[1].attribute[0].g.node[0]):
        node.input[1] = "_b"
    proto.graph.node[1].attribute[1].g.node[1].input[1] = "_b"
    model = opened(proto)
    names = [model.fresh_name() for _ in range(1000)]
    assert names[0] == "_c"
    assert len(set(names)) == 1000
    assert not {"_a", "_b"} & set(names)


def test_the_second_way_round_changes_not_a_bit() -> None:
    for proto in (with_metadata(chain_cnn()), model_of(CHOICE, WEIGHTS)):
        once = round_trip(proto)
        assert round_trip(once).SerializeToString() == once.SerializeToString()


def test_an_edit_of_a_body_reaches_the_file() -> None:
    model = opened(model_of(CHOICE, WEIGHTS))
    path, graph = next((p, g) for p, g in bodies(model.graph) if p.endswith("then_branch/"))
    target = graph.outputs[0]
    inner = target.inputs[0]
    inner.outputs[0] = gs.Variable(model.fresh_name())
    add_node(model, graph, "Neg", [inner.outputs[0]], [target], origin=("o",), path=path)
    feed = {"c": TRUE, "x": normal(2, 3, 4)}
    expected = outputs(model_of(CHOICE, WEIGHTS), feed)["y"]
    np.testing.assert_array_equal(outputs(to_proto(model), feed)["y"], -expected)
    assert model.origins["y/then_branch/p"] == ("o",)


def test_unused_parts_go_and_used_ones_stay() -> None:
    body = "y = MatMul(x, w) d = Relu(u)"
    text = f"{HEAD} g (float[N, 4] x, float[N] u) => (float[N, 4] y) {{ {body} }}"
    model = opened(model_of(text, {"w": normal(0, 4, 4)}))
    drop_unused(model)
    back = to_proto(model)
    assert [value.name for value in back.graph.input] == ["x", "u"]
    assert [node.op_type for node in back.graph.node] == ["MatMul"]


def test_refuses_what_has_no_output() -> None:
    proto = mlp()
    del proto.graph.output[:]
    with pytest.raises(ModelError, match="model: a graph needs at least one output"):
        from_proto(proto, b"")


def test_hash_and_size_are_those_of_the_file() -> None:
    model = from_proto(mlp(), b"abc")
    assert model.source_bytes == 3
    assert model.source_sha256.startswith("ba7816bf8f01cfea")
    assert model.copy().source_sha256 == model.source_sha256


def test_text_and_strings_survive() -> None:
    tensor = numpy_helper.from_array(np.array(["a", "é"], object), "w")
    proto = custom([helper.make_node("Odd", ["x", "w"], ["y"], domain="vendor", words=["é", "b"])])
    proto.graph.initializer.append(tensor)
    back = round_trip(proto)
    assert list(back.graph.initializer) == [tensor]
    assert back.graph.node[0].attribute == proto.graph.node[0].attribute


def test_bodies_that_come_before_what_they_read_are_tied_to_it() -> None:
    text = f"""{HEAD}
    g (bool c, float[2] x) => (float[2] y) {{
        y = If(c)<
            then_branch = yes () => (float[2] p) {{ p = Relu(late) }},
            else_branch = no () => (float[2] q) {{ q = Neg(x) }}
        >
        late = Abs(x)
    }}"""
    model = opened(model_of(text))
    inner = next(graph for path, graph in bodies(model.graph) if path == "y/then_branch/")
    assert inner.nodes[0].inputs[0].inputs[0].op == "Abs"
