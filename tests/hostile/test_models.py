"""Files that no reader should trust: one sentence, nothing written, little time and memory."""

import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from onnxslim_tk.errors import ModelError, OnnxSlimError, SessionError
from onnxslim_tk.graph.check import check
from onnxslim_tk.measure.runtime import Session
from onnxslim_tk.passes.clean import Clean
from onnxslim_tk.pipeline import load, optimize, pack
from onnxslim_tk.report.overview import overview
from tests.models import CONTEXT, since

from .models import (
    Builder,
    altered,
    bomb,
    chain,
    constants,
    doubling,
    functions,
    layer,
    nested,
    plain,
    sparse,
    truncated,
    weight,
    wide,
    with_invalid_text,
    with_node,
    with_weight,
)
from .places import place_of

OTHER = helper.make_node("Relu", ["x"], ["a"])
X = {"x": np.ones(2, np.float32)}


def name_alike(proto: onnx.ModelProto) -> None:
    for node in proto.graph.node:
        node.name = "same"


def refer(proto: onnx.ModelProto) -> None:
    proto.graph.node[1].attribute.add(name="alpha", type=1, ref_attr_name="slope")


def list_the_weight_beside_an_empty_constant(proto: onnx.ModelProto) -> None:
    proto.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [2]))
    proto.graph.node.append(helper.make_node("Constant", [], ["k"]))


def compute_for_nobody(proto: onnx.ModelProto) -> None:
    proto.graph.initializer.extend(
        weight(name, np.ones(shape))
        for name, shape in (("gx", (1, 1, 8)), ("gw", (1, 24, 8)), ("gr", (1, 24, 8)))
    )
    proto.graph.node.append(helper.make_node("GRU", ["gx", "gw", "gr"], [], hidden_size=8))


def dequantize_along_text(proto: onnx.ModelProto) -> None:
    proto.opset_import[0].version = 12
    proto.graph.initializer.append(weight("q", [[1, 2], [3, 4]], np.int8))
    proto.graph.initializer.append(weight("s", [0.5, 0.25]))
    proto.graph.node.append(helper.make_node("DequantizeLinear", ["q", "s"], ["d"], axis=""))
    proto.graph.node.append(helper.make_node("MatMul", ["x", "d"], ["z"]))
    proto.graph.output.append(helper.make_empty_tensor_value_info("z"))


UNREADABLE: dict[str, tuple[Builder, str]] = {
    **{f"{share:.0%} of a file": (truncated(share), "") for share in np.arange(0.0, 1.0, 0.05)},
    "text": (lambda: b"this is no model\n" * 20, "is not an ONNX file"),
    "zeros": (lambda: bytes(1000), "is not an ONNX file"),
    "data that are too short": (with_weight(raw_data=b"1234"), "needs 8 bytes, it holds 4"),
    "data that are too long": (with_weight(raw_data=b"1" * 12), "needs 8 bytes, it holds 12"),
    "dimensions of more than there is": (with_weight(dims=[1 << 20]), "needs 4194304 bytes"),
    "dimensions that overflow": (with_weight(dims=[1 << 31, 1 << 31]), "must fit in memory"),
    "no elements of huge dimensions": (
        with_weight(dims=[0, 1 << 62], raw_data=b""),
        "must fit in memory",
    ),
    "a negative dimension": (with_weight(dims=[-2]), "must have dimensions from 0 up, got (-2)"),
    "two negative dimensions": (with_weight(dims=[-2, -1]), "must have dimensions from 0 up"),
    "forty dimensions": (with_weight(dims=[1] * 40), "at most 32 dimensions, got 40"),
    "an unknown element type": (with_weight(data_type=77), "has the element type 77"),
    "no element type": (with_weight(data_type=0), "has the element type 0"),
    "text where numbers are said to be": (
        with_weight(data_type=TensorProto.STRING),
        "needs 2 values, it holds 0",
    ),
    "a cycle": (
        altered(lambda m: m.graph.node[0].input.__setitem__(1, "y")),
        "the graph has a cycle",
    ),
    "a node that reads itself": (
        altered(lambda m: m.graph.node[0].input.__setitem__(0, "a")),
        "the graph has a cycle",
    ),
    "a tensor made twice": (altered(lambda m: m.graph.node.append(OTHER)), "'a' is made twice"),
    "a weight that a node makes": (
        altered(lambda m: m.graph.initializer.append(weight("a", [1, 2]))),
        "'a' is made twice",
    ),
    "an input that a node makes": (
        altered(lambda m: m.graph.node[1].output.__setitem__(0, "x")),
        "'x' is made twice",
    ),
    "two inputs of one name": (
        altered(lambda m: m.graph.input.append(m.graph.input[0])),
        "two inputs of a graph bear the name 'x'",
    ),
    "an input without type": (
        altered(lambda m: m.graph.input[0].ClearField("type")),
        "must have names and types",
    ),
    "a dangling input": (
        altered(lambda m: m.graph.initializer.pop()),
        "the Add that makes 'a' reads 'w', which nothing makes",
    ),
    "an output that nothing makes": (
        altered(lambda m: m.graph.output.append(helper.make_empty_tensor_value_info("no"))),
        "nothing makes the output 'no'",
    ),
    "no outputs": (altered(lambda m: m.graph.ClearField("output")), "at least one output"),
    "an output without name": (
        altered(lambda m: m.graph.output[0].ClearField("name")),
        "nothing makes the output ''",
    ),
    "no operator sets": (altered(lambda m: m.ClearField("opset_import")), "it names none"),
    "operator set 0": (
        altered(lambda m: setattr(m.opset_import[0], "version", 0)),
        "must have a version from 1 up, got 0",
    ),
    "a name that is no UTF-8": (
        with_invalid_text(lambda m, text: setattr(m.graph.node[0], "name", text)),
        "all text must be UTF-8, a name of a NodeProto",
    ),
    "metadata that are no UTF-8": (
        with_invalid_text(lambda m, text: m.metadata_props.add(key="k", value=text)),
        "all text must be UTF-8, a value of a StringStringEntryProto",
    ),
    "a thousand Ifs in each other": (nested(1000), "is not an ONNX file, or a damaged one"),
    "a function that calls itself": (functions({"f0": ["f0"]}), "'f0' calls itself"),
    "functions that call each other": (
        functions({"f0": ["f1"], "f1": ["f2"], "f2": ["f0"]}),
        "calls itself",
    ),
    "functions that double 40 times": (
        functions({f"f{k}": [f"f{k + 1}"] * 2 for k in range(40)} | {"f40": []}),
        "local functions must come to 1048576 nodes at most",
    ),
    "sparse indices outside": (sparse([1, 9], [4]), "has indices outside its dimensions (4)"),
    "negative sparse indices": (sparse([-1, 2], [4]), "has indices outside"),
    "too few sparse indices": (sparse([1], [4]), "has indices of the shape (1)"),
    "sparse dimensions that overflow": (sparse([1, 2], [1 << 40] * 3), "must fit in memory"),
    "too many inputs": (
        with_node("Relu", ["a", "a"]),
        "the Relu that makes 'z' has 2 inputs, it takes 1 to 1",
    ),
    "too few inputs": (with_node("Add", ["a"]), "has 1 inputs, it takes 2 to 2"),
    "too many outputs": (with_node("Relu", ["a"], outputs=["z", "q"]), "has 2 outputs"),
    "an attribute of the wrong type": (
        with_node("LeakyRelu", ["a"], alpha="steep"),
        "needs the attribute alpha as FLOAT",
    ),
    "strides that are text": (
        with_node("MaxPool", ["a"], kernel_shape=[1], strides="two"),
        "needs the attribute strides as INTS",
    ),
    "a missing attribute": (with_node("Cast", ["a"]), "lacks the attribute to"),
    "an attribute that refers to nothing": (
        altered(refer, "y = LeakyRelu(a)"),
        "refers to an attribute of a function, it is in none",
    ),
}

UNRUNNABLE: dict[str, Builder] = {
    "a Constant of nothing": altered(list_the_weight_beside_an_empty_constant),
    "an axis that is text": altered(dequantize_along_text),
    "an operator set to come": altered(lambda m: setattr(m.opset_import[0], "version", 999)),
    "repeated node names": altered(name_alike),
    "an unknown operator": with_node("Unheard", ["a"]),
    "a Conv with a matrix": layer("Conv", [1, 3, 8, 8], weight("w", np.ones((4, 3)))),
    "a Conv with a number": layer("Conv", [1, 3, 8, 8], weight("w", 1.0)),
    "a Gemm with a vector": layer("Gemm", [2, 3], weight("w", np.ones(3))),
    "sizes that don't meet": layer("MatMul", [2, 3], weight("w", np.ones((4, 5)))),
    "normalization of other lengths": layer(
        "BatchNormalization", [1, 3, 8, 8], *(weight(n, np.ones(5)) for n in "sbmv")
    ),
    "an axis out of range": layer("Concat", [2, 3], weight("w", np.ones((2, 3))), axis=9),
    "a permutation that is none": layer("Transpose", [2, 3], perm=[0, 5]),
    "text as a weight": layer("MatMul", [2, 2], weight("w", [["a", "b"], ["c", "d"]], object)),
    "a Cast to nothing": layer("Cast", [2, 2], to=0),
    "a Cast to something unheard of": layer("Cast", [2, 2], to=99),
}

NEVER_RUNS: dict[str, Builder] = {
    "a Conv of no groups": layer("Conv", [1, 3, 8, 8], weight("w", np.ones((4, 3, 3, 3))), group=0),
    "a Conv of negative groups": layer(
        "Conv", [1, 3, 8, 8], weight("w", np.ones((4, 3, 3, 3))), group=-1
    ),
    "groups that don't divide": layer(
        "Conv", [1, 3, 8, 8], weight("w", np.ones((4, 3, 3, 3))), group=3
    ),
    "a kernel of another shape": layer(
        "Conv", [1, 3, 8, 8], weight("w", np.ones((4, 3, 3, 3))), kernel_shape=[5, 5]
    ),
    "an empty Conv": layer("Conv", [1, 3, 8, 8], weight("w", np.ones((0, 3, 3, 3)))),
}

HARMLESS: dict[str, Builder] = {
    "one weight's name twice": altered(
        lambda m: m.graph.initializer.insert(0, weight("w", [100, 200]))
    ),
    "weights that are no numbers": with_weight(raw_data=b"\x00\x00\xc0\x7f\x00\x00\x80\x7f"),
    "an empty weight": altered(lambda m: m.graph.initializer.append(weight("e", np.ones((0, 3))))),
    "a weight of both kinds of data": with_weight(float_data=[3.0]),
    "annotations of nothing": altered(
        lambda m: m.graph.quantization_annotation.add(
            tensor_name="\x1b"
        ).quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="nowhere")
    ),
    "two outputs of one name": altered(lambda m: m.graph.output.append(m.graph.output[0])),
    "an output that is an input": altered(lambda m: m.graph.output.append(m.graph.input[0])),
    "four Ifs in each other": nested(4),
    "a function in a function": functions({"f0": ["f1", "f1"], "f1": []}),
    "an old version of the format": altered(lambda m: setattr(m, "ir_version", 3)),
    "a node that gives nothing": altered(compute_for_nobody),
    "nodes in reverse": altered(lambda m: m.graph.node.insert(0, m.graph.node.pop())),
}

S64 = (np.array([1 << 14, 1 << 14]), np.int64)
BOMBS: dict[str, Builder] = {
    "ConstantOfShape": bomb("ConstantOfShape", ["s"], {"s": S64}, copies=30),
    "Expand": bomb("Expand", ["v", "s"], {"s": S64, "v": ([1], np.float32)}, copies=30),
    "Tile": bomb("Tile", ["v", "s"], {"s": ([1 << 30], np.int64), "v": ([1], np.float32)}),
    "Range": bomb(
        "Range",
        ["f", "t", "d"],
        {"f": (0, np.float32), "t": (1e9, np.float32), "d": (1, np.float32)},
    ),
    "Concat": doubling(60),
    "Gather": bomb("Gather", ["w", "s"], {"s": (np.zeros((1000, 1000)), np.int64)}, copies=1),
}

LARGE: dict[str, Builder] = {
    "a long chain": chain("Relu", 2_000),
    "a long chain that does nothing": chain("Identity", 2_000),
    "many weights": wide(3_000),
    "many sums of constants": constants(3_000),
}


@pytest.fixture
def place(tmp_path: Path) -> tuple[Path, Path]:
    return tmp_path / "in.onnx", tmp_path / "out.onnx"


def refusals(source: Path, target: Path) -> Iterator[str]:
    """What each verb says; it must be an error of ours, and nothing may be written."""
    for action in (
        lambda: load(source),
        lambda: optimize(source, target),
        lambda: pack(source, target),
    ):
        with pytest.raises(OnnxSlimError) as caught:
            action()
        assert not target.exists()
        yield str(caught.value)


@pytest.mark.parametrize("name", UNREADABLE)
def test_a_file_that_cannot_be_right_is_refused_by_every_verb_in_one_sentence(
    name: str, place: tuple[Path, Path]
) -> None:
    build, words = UNREADABLE[name]
    place[0].write_bytes(build())
    for message in refusals(*place):
        assert words in message
        assert message.startswith("model: ")
        assert len(message) < 300
        assert message.isprintable()
    assert [path.name for path in place[0].parent.iterdir()] == ["in.onnx"]


@since("1.20", "ends the process for an axis out of range")
@pytest.mark.parametrize("name", UNRUNNABLE)
def test_a_model_that_does_not_run_is_looked_at_and_refused_by_the_runtime(
    name: str, place: tuple[Path, Path]
) -> None:
    source, target = place
    source.write_bytes(UNRUNNABLE[name]())
    overview(load(source), {}, {})
    for action in (optimize, pack):
        with pytest.raises(SessionError) as caught:
            action(source, target)
        assert "\n" not in str(caught.value)
        assert not target.exists()


@pytest.mark.parametrize("name", HARMLESS)
def test_what_the_runtime_accepts_is_accepted(name: str, place: tuple[Path, Path]) -> None:
    source, target = place
    source.write_bytes(HARMLESS[name]())
    overview(load(source), {}, {})
    before = Session(source).run(X)
    for action in (optimize, pack):
        action(source, target)
        after = Session(target).run(X)
        assert list(after) == list(before)
        for output, values in before.items():
            np.testing.assert_array_equal(after[output], values)


@pytest.mark.parametrize("name", NEVER_RUNS)
def test_a_model_that_loads_and_never_runs_is_left_alone_or_refused(
    name: str, place: tuple[Path, Path]
) -> None:
    source, target = place
    data = NEVER_RUNS[name]()
    source.write_bytes(data)
    overview(load(source), {}, {})
    for action in (optimize, pack):
        target.unlink(missing_ok=True)
        refused = ""
        try:
            action(source, target)
        except OnnxSlimError as error:
            refused = str(error)
        assert "\n" not in refused
        assert target.exists() == (not refused)
        assert source.read_bytes() == data


@pytest.mark.parametrize("name", BOMBS)
def test_a_small_file_fills_no_memory(name: str, place: tuple[Path, Path]) -> None:
    place[0].write_bytes(BOMBS[name]())
    tracemalloc.start()
    try:
        model = load(place[0])
        overview(model, {}, {})
        list(Clean().propose(model, CONTEXT))
        assert tracemalloc.get_traced_memory()[1] < 300 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", LARGE)
def test_a_graph_of_many_nodes_is_read_in_passing(name: str, place: tuple[Path, Path]) -> None:
    # What grows with the square of their number would take minutes here.
    place[0].write_bytes(LARGE[name]())
    assert overview(load(place[0]), {}, {}).nodes > 0


@pytest.mark.parametrize("build", [chain("Relu", 100_000), wide(100_000)], ids=["chain", "wide"])
def test_a_hundred_thousand_nodes_are_checked_before_anything_is_done_with_them(
    build: Builder,
) -> None:
    proto = onnx.ModelProto.FromString(build())
    check(proto)
    proto.graph.node[-1].input[0] = "nowhere"
    with pytest.raises(ModelError, match="reads 'nowhere', which nothing makes"):
        check(proto)


@pytest.mark.parametrize("kind", ["folder", "pipe", "device", "nothing", "long"])
def test_what_is_no_file_is_refused_at_once(kind: str, tmp_path: Path) -> None:
    source = place_of(kind, tmp_path / "in.onnx")
    for message in refusals(source, tmp_path / "out.onnx"):
        assert message.startswith("model: ")


def test_a_file_that_is_there_already_stays_when_the_model_is_refused(
    place: tuple[Path, Path],
) -> None:
    source, target = place
    source.write_bytes(plain().SerializeToString()[:-9])
    target.write_bytes(b"mine")
    for action in (optimize, pack):
        with pytest.raises(ModelError):
            action(source, target)
        assert target.read_bytes() == b"mine"


def test_a_convolution_in_groups_of_text_is_looked_at_without_a_traceback(
    place: tuple[Path, Path],
) -> None:
    proto = onnx.ModelProto.FromString(altered(lambda m: None)())
    proto.graph.initializer.append(weight("cw", np.ones((2, 1, 1, 8))))
    proto.graph.initializer.append(weight("cx", np.ones((1, 2, 4, 8))))
    proto.graph.node.append(helper.make_node("Conv", ["cx", "cw"], ["cy"], group=""))
    # In so old a file types of attributes count for nothing.
    proto.ir_version = 1
    place[0].write_bytes(proto.SerializeToString())
    found = overview(load(place[0]), {}, {})
    assert "cy" not in {layer.id for layer in found.layers}


def test_types_of_attributes_in_an_old_file_are_those_of_their_operators(
    place: tuple[Path, Path],
) -> None:
    proto = onnx.ModelProto.FromString(altered(lambda m: None)())
    proto.graph.initializer.append(weight("cw", np.ones((2, 8))))
    proto.graph.initializer.append(weight("cx", np.ones((4, 8))))
    proto.graph.node.append(helper.make_node("Transpose", ["cw"], ["ct"], perm=[1, 0]))
    proto.graph.node.append(helper.make_node("MatMul", ["cx", "ct"], ["cy"]))
    proto.graph.node[-2].attribute[0].type = onnx.AttributeProto.INT
    proto.ir_version = 1
    place[0].write_bytes(proto.SerializeToString())
    found = overview(load(place[0]), {}, {})
    assert "cy" in {layer.id for layer in found.layers}


def test_a_model_must_name_the_version_of_the_operators_it_uses(place: tuple[Path, Path]) -> None:
    proto = onnx.ModelProto.FromString(altered(lambda m: None)())
    for entry in proto.opset_import:
        entry.domain = "of.others"
    place[0].write_bytes(proto.SerializeToString())
    with pytest.raises(ModelError, match="must name the version of the standard operators"):
        load(place[0])
