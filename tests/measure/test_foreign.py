import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper, parser

from onnxslim_tk.graph.model import from_proto
from onnxslim_tk.graph.stored import Stored
from onnxslim_tk.measure.foreign import (
    behind_foreign,
    foreign_operators,
    runnable_part,
    spelled,
)
from onnxslim_tk.measure.observe import inner_tensors, observed_shapes
from onnxslim_tk.measure.runtime import Session
from tests.models import normal

HEAD = '<ir_version: 10, opset_import: ["": 17, "vendor": 1, "local": 1]>\n'
TEXT = (
    HEAD
    + """net (float[N, 4] x, float[N, 4] z) => (float[N, 4] y, float[N, 4] early) {
    a = MatMul(x, w)
    early = Relu(a)
    b = vendor.Magic(a, z)
    c = Neg(b)
    y = Add(c, a)
}"""
)
FUNCTIONS = """
<domain: "local", opset_import: ["": 17, "vendor": 1, "local": 1]>
fine (q) => (r) { r = Relu(q) }
<domain: "local", opset_import: ["": 17, "vendor": 1, "local": 1]>
deep (q) => (r) { r = vendor.Magic(q) }
<domain: "local", opset_import: ["": 17, "vendor": 1, "local": 1]>
outer (q) => (r) { r = local.deep(q) }
"""


def built(text: str) -> onnx.ModelProto:
    proto = parser.parse_model(text)
    proto.graph.initializer.append(numpy_helper.from_array(normal(0, 4, 4), "w"))
    return proto


def stored(proto: onnx.ModelProto) -> Stored:
    return Stored(proto.SerializeToString())


def test_operators_that_the_runtime_lacks_are_named_once() -> None:
    model = from_proto(built(TEXT), b"")
    assert foreign_operators(model) == [("vendor", "Magic")]
    assert behind_foreign(model) == {"b", "c", "y"}
    assert inner_tensors(model) == ["a", "early"]


def test_what_comes_before_them_runs_and_gives_what_they_read() -> None:
    proto = built(TEXT)
    part = runnable_part(stored(proto), [("vendor", "Magic")])
    assert part is not None
    session = Session(part)
    assert [info.name for info in session.inputs] == ["x", "z"]
    feed = {"x": normal(1, 2, 4), "z": normal(2, 2, 4)}
    found = session.run(feed)
    product = feed["x"] @ numpy_helper.to_array(proto.graph.initializer[0])
    assert set(found) == {"b<0", "y<1", "early"}
    np.testing.assert_allclose(found["b<0"], product, rtol=1e-5)
    assert observed_shapes(from_proto(proto, b""), feed)["a"] == (2, 4)


def test_nodes_in_no_order_are_no_trouble() -> None:
    proto = built(TEXT)
    nodes = [onnx.NodeProto.FromString(n.SerializeToString()) for n in reversed(proto.graph.node)]
    proto.graph.ClearField("node")
    proto.graph.node.extend(nodes)
    part = runnable_part(stored(proto), [("vendor", "Magic")])
    assert part is not None
    assert len(Session(part).outputs) == 3


def test_a_model_that_runs_is_its_own_part() -> None:
    proto = built(TEXT)
    one = stored(proto)
    assert runnable_part(one, []) is one


def test_nothing_before_them_is_no_part() -> None:
    text = HEAD + "net (float[4] x) => (float[4] y) { a = vendor.Magic(x)\n y = Neg(a) }"
    assert runnable_part(stored(built(text)), [("vendor", "Magic")]) is None


@pytest.mark.parametrize(
    ("name", "expected"), [("fine", []), ("deep", ["deep"]), ("outer", ["outer"])]
)
def test_local_functions_are_known_unless_they_need_what_is_not(
    name: str, expected: list[str]
) -> None:
    text = HEAD + f"net (float[4] x) => (float[4] y) {{ y = local.{name}(x) }}" + FUNCTIONS
    found = foreign_operators(from_proto(built(text), b""))
    assert found == [("local", n) for n in expected]


def test_an_operator_within_a_body_stops_the_node_around_it() -> None:
    info = helper.make_tensor_value_info
    body = helper.make_graph(
        [helper.make_node("Magic", ["a"], ["t"], domain="vendor")], "b", [], [info("t", 1, None)]
    )
    nodes = [
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("If", ["c"], ["y"], then_branch=body, else_branch=body),
    ]
    graph = helper.make_graph(
        nodes, "net", [info("x", 1, [4]), info("c", 9, [])], [info("y", 1, None), info("a", 1, [4])]
    )
    proto = helper.make_model(
        graph,
        ir_version=8,
        opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("vendor", 1)],
    )
    model = from_proto(proto, b"")
    assert behind_foreign(model) == {"y"}
    part = runnable_part(stored(proto), foreign_operators(model))
    assert part is not None
    assert [info.name for info in Session(part).outputs] == ["a"]


def test_a_message_names_an_operator_in_one_short_printable_line() -> None:
    assert spelled(("vendor", "Magic")) == "vendor.Magic"
    for wild in ("a\nb\x1b[31m", "x" * 1000):
        assert len(spelled(("vendor", wild))) <= 60
        assert spelled(("vendor", wild)).isprintable()
