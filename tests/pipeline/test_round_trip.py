"""Nothing that a file says is lost on the way in and out."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, external_data_helper, helper, numpy_helper

from onnxslim_tk.graph.edit import constants
from onnxslim_tk.graph.layers import layers
from onnxslim_tk.measure.runtime import Session
from onnxslim_tk.pipeline import load, optimize, save
from onnxslim_tk.plan.recipe import Recipe
from tests.models import mlp, normal

Change = Callable[[onnx.ModelProto], object]
NOTHING = Recipe("nothing", ())
INFO = helper.make_tensor_value_info
# Bytes of four values; older versions of onnx don't know the newest types.
PACKED_BYTES = {
    TensorProto.DataType.Value(name): size
    for size, names in {
        1: ("INT2", "UINT2"),
        2: ("INT4", "UINT4", "FLOAT4E2M1"),
        3: ("FLOAT6E2M3", "FLOAT6E3M2"),
        4: ("FLOAT8E4M3FN", "FLOAT8E5M2FNUZ", "FLOAT8E8M0"),
        8: ("BFLOAT16", "FLOAT16"),
        32: ("COMPLEX64",),
    }.items()
    for name in names
    if name in set(TensorProto.DataType.keys())
}


def plain() -> onnx.ModelProto:
    """``x (N, 4)`` through a product with ``w`` and a body to ``y``."""
    node = helper.make_node("MatMul", ["x", "w"], ["m"], name="product")
    then = helper.make_graph(
        [helper.make_node("MatMul", ["m", "w"], ["t"])], "then", [], [INFO("t", 1, None)]
    )
    other = helper.make_graph(
        [helper.make_node("Add", ["m", "b"], ["e"])],
        "else",
        [],
        [INFO("e", 1, None)],
        [numpy_helper.from_array(np.ones(4, np.float32), "b")],
    )
    choice = helper.make_node("If", ["c"], ["y"], then_branch=then, else_branch=other)
    graph = helper.make_graph(
        [node, choice],
        "plain",
        [INFO("x", 1, ["N", 4]), INFO("c", TensorProto.BOOL, [])],
        [INFO("y", 1, ["N", 4])],
        [numpy_helper.from_array(normal(0, 4, 4), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])
    model.ir_version = 10
    return model


def body_of(model: onnx.ModelProto) -> onnx.GraphProto:
    return next(node for node in model.graph.node if node.op_type == "If").attribute[0].g


def meta(message: Any, text: str) -> None:
    message.metadata_props.add(key=f"{text} key", value=f"{text} value")
    message.metadata_props.add(key=f"{text} empty", value="")


def header(model: onnx.ModelProto) -> None:
    model.producer_name, model.producer_version = "vendor", "1.2"
    model.domain, model.model_version, model.doc_string = "com.vendor", 7, "what it does"
    meta(model, "model")


def graphs(model: onnx.ModelProto) -> None:
    for graph in (model.graph, body_of(model)):
        meta(graph, graph.name)
        graph.doc_string = f"doc of {graph.name}"


def nodes(model: onnx.ModelProto) -> None:
    body = body_of(model)
    for node in (*model.graph.node, *body.node):
        meta(node, node.op_type)
        node.doc_string = f"doc of {node.op_type}"
    model.graph.node[1].attribute[0].doc_string = "doc of a body's attribute"


def attributes(model: onnx.ModelProto) -> None:
    node = helper.make_node("Magic", ["m"], ["n"], domain="vendor", size=3, list=[1, 2], word="x")
    for attribute in node.attribute:
        attribute.doc_string = f"doc of {attribute.name}"
    model.graph.node.insert(1, node)
    model.graph.output.append(INFO("n", 1, None))
    model.opset_import.append(helper.make_opsetid("vendor", 3))


def tensors(model: onnx.ModelProto) -> None:
    big = numpy_helper.from_array(normal(1, 4, 1024), "big")
    model.graph.initializer.append(big)
    model.graph.node.append(helper.make_node("MatMul", ["x", "big"], ["z"]))
    model.graph.output.append(INFO("z", 1, ["N", 1024]))
    body = body_of(model)
    for tensor in (*model.graph.initializer, *body.initializer):
        meta(tensor, tensor.name)
        tensor.doc_string = f"doc of {tensor.name}"


def ports(model: onnx.ModelProto) -> None:
    for value in (*model.graph.input, *model.graph.output):
        meta(value, value.name)
        value.doc_string, value.type.denotation = f"doc of {value.name}", "IMAGE"
    dims = model.graph.input[0].type.tensor_type.shape.dim
    dims[0].denotation, dims[1].denotation = "DATA_BATCH", "DATA_CHANNEL"


def annotations(model: onnx.ModelProto) -> None:
    for graph in (model.graph, body_of(model)):
        found = graph.quantization_annotation.add(tensor_name="w")
        found.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="scale")


def opsets(model: onnx.ModelProto) -> None:
    for domain, version in (("ai.onnx.ml", 3), ("com.vendor", 12), ("unused", 1)):
        model.opset_import.append(helper.make_opsetid(domain, version))


def training(model: onnx.ModelProto) -> None:
    info = model.training_info.add()
    info.initialization.name, info.algorithm.name = "start", "step"
    info.algorithm.node.append(helper.make_node("Relu", ["y"], ["loss"]))
    info.update_binding.add(key="w", value="loss")


def functions(model: onnx.ModelProto) -> None:
    inner = helper.make_node("LeakyRelu", ["a"], ["t"], name="leak")
    inner.attribute.add(name="alpha", ref_attr_name="alpha", type=onnx.AttributeProto.FLOAT)
    meta(inner, "inner")
    call = helper.make_node("Deep", ["t"], ["b"], domain="inner")
    own = [helper.make_opsetid("", 18), helper.make_opsetid("inner", 4)]
    outer = helper.make_function("local", "Fun", ["a"], ["b"], [inner, call], own, ["alpha"])
    deep = helper.make_node("Relu", ["a"], ["b"])
    below = helper.make_function("inner", "Deep", ["a"], ["b"], [deep], own[:1])
    for function in (outer, below):
        meta(function, function.name)
        function.doc_string = f"doc of {function.name}"
    below.overload = "second"
    model.functions.extend([outer, below])
    model.graph.node.append(helper.make_node("Fun", ["m"], ["f"], domain="local", alpha=0.5))
    model.graph.output.append(INFO("f", 1, ["N", 4]))
    model.opset_import.extend([helper.make_opsetid("local", 1), own[1]])


def sparse(model: onnx.ModelProto) -> None:
    found = model.graph.sparse_initializer.add(dims=[4, 4])
    found.values.CopyFrom(numpy_helper.from_array(np.array([1, 2], np.float32), "rare"))
    found.indices.CopyFrom(numpy_helper.from_array(np.array([1, 5], np.int64), "rare_at"))
    model.graph.node.append(helper.make_node("Add", ["x", "rare"], ["r"]))
    model.graph.output.append(INFO("r", 1, None))


def narrow(model: onnx.ModelProto) -> None:
    for kind, size in PACKED_BYTES.items():
        name = TensorProto.DataType.Name(kind).lower()
        for copy, count in (("small", 1), ("big", 4096)):
            raw = np.random.default_rng(size).bytes(size * count)
            weight = f"{name}_{copy}"
            tensor = TensorProto(name=weight, data_type=kind, dims=[4 * count], raw_data=raw)
            model.graph.initializer.append(tensor)
            model.graph.node.append(helper.make_node("Identity", [weight], [f"{weight}_out"]))
            model.graph.output.append(INFO(f"{weight}_out", kind, [4 * count]))


def strings(model: onnx.ModelProto) -> None:
    words = TensorProto(name="words", data_type=TensorProto.STRING, dims=[2])
    words.string_data.extend(["Größe".encode(), b"\xff not text"])
    model.graph.initializer.append(words)
    model.graph.node.append(helper.make_node("Identity", ["words"], ["said"]))
    model.graph.output.append(INFO("said", TensorProto.STRING, [2]))


def containers(model: onnx.ModelProto) -> None:
    tensor = helper.make_tensor_type_proto(1, ["K"])
    mapping = onnx.TypeProto()
    mapping.sequence_type.elem_type.map_type.key_type = TensorProto.INT64
    mapping.sequence_type.elem_type.map_type.value_type.CopyFrom(tensor)
    types = {
        "sequence": helper.make_sequence_type_proto(tensor),
        "optional": helper.make_optional_type_proto(tensor),
        "nested": helper.make_optional_type_proto(helper.make_sequence_type_proto(tensor)),
        "mapping": mapping,
    }
    for name, kind in types.items():
        model.graph.input.append(helper.make_value_info(name, kind))
        model.graph.node.append(helper.make_node("Identity", [name], [f"{name}_out"]))
        model.graph.output.append(helper.make_value_info(f"{name}_out", kind))


def foreign(model: onnx.ModelProto) -> None:
    first = helper.make_node("Magic", ["m", ""], ["v", ""], domain="vendor", mode=b"\xff\x00")
    second = helper.make_node("Relu", ["v"], ["o"])
    model.graph.node.extend([first, second])
    model.graph.output.append(INFO("o", 1, None))
    model.opset_import.append(helper.make_opsetid("vendor", 3))
    # Nobody else could tell what type an operator of a vendor gives.
    model.graph.value_info.append(INFO("v", 1, ["N", "odd", 4]))


def defaults(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(numpy_helper.from_array(normal(3, 4, 1024), "default"))
    model.graph.input.append(INFO("default", 1, [4, 1024]))
    model.graph.node.append(helper.make_node("MatMul", ["x", "default"], ["d"]))
    model.graph.output.append(INFO("d", 1, ["N", 1024]))


CHANGES: list[Change] = [
    header,
    graphs,
    nodes,
    attributes,
    tensors,
    ports,
    annotations,
    opsets,
    training,
    functions,
    sparse,
    narrow,
    strings,
    containers,
    foreign,
    defaults,
]


def everything() -> onnx.ModelProto:
    """One model with all that the others have."""
    model = plain()
    for change in CHANGES:
        change(model)
    imports = {entry.domain: entry.version for entry in model.opset_import}
    del model.opset_import[:]
    model.opset_import.extend(helper.make_opsetid(*item) for item in imports.items())
    return model


def settled(model: onnx.ModelProto) -> onnx.ModelProto:
    """``model`` without what says nothing: the order of weights and attributes, empty words."""
    copy = onnx.ModelProto.FromString(model.SerializeToString())

    def visit(message: Any) -> None:
        for field, value in message.ListFields():
            if isinstance(value, str | bytes):
                if not value:
                    message.ClearField(field.name)
            elif field.type == field.TYPE_MESSAGE:
                for inner in value if field.is_repeated else [value]:
                    visit(inner)
                if field.name in ("initializer", "attribute") and field.is_repeated:
                    value.sort(key=lambda entry: entry.name)

    visit(copy)
    return copy


def round_trip(model: onnx.ModelProto, folder: Path) -> onnx.ModelProto:
    (folder / "in.onnx").write_bytes(model.SerializeToString())
    opened = load(folder / "in.onnx")
    for tensor in constants(opened):
        # Values that were looked at are written anew.
        _ = tensor.values if tensor.dtype == np.float32 else None
    save(opened.copy(), folder / "out.onnx")
    return onnx.load(folder / "out.onnx")


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_comes_back_as_it_was(change: Change, tmp_path: Path) -> None:
    model = plain()
    change(model)
    assert model != plain()
    assert settled(round_trip(model, tmp_path)) == settled(model)


def test_narrow_types_come_back_from_a_data_file(tmp_path: Path) -> None:
    model = plain()
    narrow(model)
    expected = settled(model)
    outside = [t for t in model.graph.initializer if t.name.endswith("_big")]
    assert len(outside) == len(PACKED_BYTES)
    with (tmp_path / "data.bin").open("wb") as file:
        for tensor in outside:
            start, raw = file.tell(), tensor.raw_data
            file.write(raw)
            external_data_helper.set_external_data(tensor, "data.bin", start, len(raw))
            tensor.ClearField("raw_data")
    assert settled(round_trip(model, tmp_path)) == expected


def test_all_of_it_in_one_model_comes_back_as_it_was(tmp_path: Path) -> None:
    model = everything()
    assert settled(round_trip(model, tmp_path)) == settled(model)


def test_a_recipe_of_nothing_adds_its_provenance_and_no_more(tmp_path: Path) -> None:
    model = plain()
    for change in CHANGES:
        # What these hold, the runtime can't run.
        if change not in (attributes, functions, narrow, containers, foreign, strings):
            change(model)
    # Worth packing, so that the result isn't the original itself.
    model.graph.initializer.append(numpy_helper.from_array(np.zeros((4, 512), np.float32), "o"))
    model.graph.node.append(helper.make_node("MatMul", ["x", "o"], ["zeros"]))
    model.graph.output.append(INFO("zeros", 1, ["N", 512]))
    onnx.save(model, tmp_path / "in.onnx")
    optimize(tmp_path / "in.onnx", tmp_path / "out.onnx", NOTHING)
    result = onnx.load(tmp_path / "out.onnx")
    ours = [e for e in result.metadata_props if e.key.startswith("onnxslim_tk.")]
    assert {e.key for e in ours} >= {"onnxslim_tk.version", "onnxslim_tk.source_sha256"}
    save(load(tmp_path / "out.onnx"), tmp_path / "again.onnx")
    back = settled(onnx.load(tmp_path / "out.onnx"))
    for entry in ours:
        back.metadata_props.remove(entry)
    for field in ("node", "initializer", "value_info"):
        back.graph.ClearField(field)
    expected = settled(model)
    for field in ("node", "initializer", "value_info"):
        expected.graph.ClearField(field)
    assert back == expected


def test_an_input_with_a_default_can_still_be_fed(tmp_path: Path) -> None:
    model = plain()
    defaults(model)
    onnx.save(model, tmp_path / "in.onnx")
    optimize(tmp_path / "in.onnx", tmp_path / "out.onnx", "light")
    feed = {"x": normal(5, 2, 4), "c": np.array(True)}
    before, after = (Session(tmp_path / name) for name in ("in.onnx", "out.onnx"))
    np.testing.assert_array_equal(after.run(feed)["d"], before.run(feed)["d"])
    other = {**feed, "default": normal(6, 4, 1024)}
    np.testing.assert_array_equal(after.run(other)["d"], before.run(other)["d"])
    assert not np.array_equal(after.run(other)["d"], after.run(feed)["d"])


@pytest.mark.parametrize("version", [3, 8])
def test_weights_that_are_inputs_by_habit_are_constants(version: int, tmp_path: Path) -> None:
    model = mlp()
    model.ir_version = version
    for tensor in model.graph.initializer:
        model.graph.input.append(INFO(tensor.name, tensor.data_type, tensor.dims))
    onnx.save(model, tmp_path / "in.onnx")
    report = optimize(tmp_path / "in.onnx", tmp_path / "out.onnx", "light")
    assert report.validation.result.file_bytes < 0.5 * report.validation.original.file_bytes
    assert [value.name for value in onnx.load(tmp_path / "out.onnx").graph.input] == ["x"]
    said = any("listed as inputs" in warning for warning in report.warnings)
    assert said == (version > 3)


def test_weights_behind_names_of_their_own_are_held_once(tmp_path: Path) -> None:
    weight = numpy_helper.from_array(normal(0, 64, 64), "w")
    nodes, last = [], "x"
    for k in range(6):
        nodes.append(helper.make_node("Identity", ["w"], [f"w{k}"]))
        nodes.append(helper.make_node("MatMul", [last, f"w{k}"], [f"h{k}"]))
        last = f"h{k}"
    graph = helper.make_graph(nodes, "tied", [INFO("x", 1, [1, 64])], [INFO(last, 1, [1, 64])])
    graph.initializer.append(weight)
    onnx.save(
        helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)]),
        tmp_path / "in.onnx",
    )
    arrays = [layer.node.inputs[1].values for layer in layers(load(tmp_path / "in.onnx"))]
    assert len(arrays) == 6
    assert all(np.shares_memory(array, arrays[0]) for array in arrays)
    save(load(tmp_path / "in.onnx"), tmp_path / "out.onnx")
    assert (tmp_path / "out.onnx").stat().st_size < 1.1 * 64 * 64 * 4


WORDS = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=8)
PAIRS = st.lists(st.tuples(WORDS, WORDS), max_size=3, unique_by=lambda pair: pair[0])
OPERATORS = st.sampled_from(["Relu", "Neg", "Abs", "Magic"])


@st.composite
def models(draw: st.DrawFn) -> onnx.ModelProto:
    """A chain of a few nodes, some of a foreign domain, with words all over."""

    def say(message: Any) -> Any:
        if draw(st.booleans()):
            message.doc_string = draw(WORDS)
        for key, value in draw(PAIRS):
            message.metadata_props.add(key=key, value=value)
        return message

    last, made = "x", []
    for k, op in enumerate(draw(st.lists(OPERATORS, min_size=1, max_size=5))):
        node = helper.make_node(op, [last], [f"t{k}"], name=draw(WORDS))
        node.domain = "vendor" if op == "Magic" else ""
        if op == "Magic":
            texts = draw(st.lists(WORDS, max_size=2))
            node.attribute.append(onnx.AttributeProto(name="s", type="STRING", s=draw(st.binary())))
            node.attribute.append(
                onnx.AttributeProto(name="t", type="STRINGS", strings=map(str.encode, texts))
            )
        made.append(say(node))
        last = f"t{k}"
    dims: list[Any] = draw(st.lists(st.one_of(st.integers(1, 9), st.just("N")), max_size=3))
    graph = onnx.GraphProto(name=draw(WORDS) or "g", node=made)
    graph.input.append(say(INFO("x", 1, dims)))
    graph.output.append(say(INFO(last, 1, dims)))
    say(graph)
    model = onnx.ModelProto(ir_version=draw(st.integers(8, 11)), graph=graph)
    model.opset_import.extend([helper.make_opsetid("", 20), helper.make_opsetid("vendor", 1)])
    model.producer_name, model.domain = draw(WORDS), draw(WORDS)
    model.model_version = draw(st.integers(-(1 << 63), (1 << 63) - 1))
    return onnx.ModelProto.FromString(say(model).SerializeToString())


@given(model=models())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_whatever_a_small_model_says_comes_back(
    model: onnx.ModelProto, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("model", numbered=True)
    assert settled(round_trip(model, folder)) == settled(model)
