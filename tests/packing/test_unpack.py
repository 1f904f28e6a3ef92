from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from onnxslim_tk.packing import pack, unpack

from .conftest import Build


def stored(model: onnx.ModelProto) -> dict[str, NDArray[Any]]:
    return {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}


def contents(model: onnx.ModelProto) -> tuple[list[bytes], dict[str, bytes]]:
    nodes = [node.SerializeToString() for node in model.graph.node]
    return nodes, {name: array.tobytes() for name, array in stored(model).items()}


def ops(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


@pytest.mark.parametrize(
    ("attribute", "expected"),
    [
        ({"value": numpy_helper.from_array(np.eye(2, dtype=np.float16))}, np.eye(2)),
        ({"value_float": 1.5}, np.float32(1.5)),
        ({"value_floats": [1.0, 2.0]}, np.array([1, 2], np.float32)),
        ({"value_int": 3}, np.int64(3)),
        ({"value_ints": [3, 4]}, np.array([3, 4])),
    ],
)
def test_stores_constant_nodes(build: Build, attribute: dict[str, Any], expected: Any) -> None:
    model = build("g (float x) => (float y) { y = Identity(x) s = Size(k) }")
    model.graph.node.insert(0, helper.make_node("Constant", [], ["k"], **attribute))
    assert unpack(model) == 1
    assert ops(model) == ["Identity", "Size"]
    np.testing.assert_array_equal(stored(model)["k"], expected)


def test_keeps_constants_that_are_no_plain_tensor_or_an_output(build: Build) -> None:
    model = build("g (float x) => (float y) { y = Identity(x) n = Size(k) }")
    model.graph.node.insert(0, helper.make_node("Constant", [], ["k"], value_strings=["a"]))
    model.graph.node.insert(0, helper.make_node("Constant", [], ["o"], value_float=1.0))
    model.graph.output.append(helper.make_tensor_value_info("o", TensorProto.FLOAT, []))
    assert unpack(model) == 0
    assert ops(model)[:2] == ["Constant", "Constant"]


def test_decodes_a_foreign_chain(build: Build) -> None:
    """4-bit codes read by shifts and remainders, in Constant nodes, as other tools write them."""
    model = build(
        """g (float[N,4] x) => (float[N,2] y) {
            w0 = BitShift<direction = "RIGHT">(p, f)
            w1 = Mod(w0, m)
            w2 = Cast<to = 6>(w1)
            w3 = Gather(book, w2)
            w = Reshape(w3, s)
            y = MatMul(x, w)
        }""",
        f=np.array([0, 4], np.uint8),
        m=np.array(16, np.uint8),
        p=np.array([[0x10], [0x32], [0x54], [0x76]], np.uint8),
        book=np.arange(16, dtype=np.float32) / 2,
        s=np.array([4, 2], np.int64),
    )
    assert unpack(model) == 1
    assert ops(model) == ["MatMul"]
    assert list(stored(model)) == ["w"]
    np.testing.assert_array_equal(stored(model)["w"].reshape(-1), np.arange(8) / 2)


@pytest.mark.parametrize("kind", [np.int8, np.uint8])
@pytest.mark.parametrize("middle", ["c = Cast<to = 1>(q)", "d = Cast<to = 1>(q) c = Sub(d, z)"])
def test_stops_at_values_and_scale(build: Build, kind: Any, middle: str) -> None:
    text = "g (float[N,64] x) => (float[N,64] y) {" + middle + " w = Mul(c, s) y = MatMul(x, w) }"
    codes = (np.arange(64 * 64) % 16).astype(kind).reshape(64, 64)
    scale = np.linspace(0.1, 1, 64, dtype=np.float32)
    model = build(text, q=codes, s=scale, z=np.array(8, np.float32))
    plain = contents(model)
    assert unpack(model) == 0
    assert contents(model) == plain
    assert "q" in {row.name for row in pack(model)}
    assert unpack(model) == 1
    assert contents(model) == plain


def test_stops_at_a_scaled_codebook(build: Build) -> None:
    text = "g (float[N,64] x) => (float[N,64] y) { w = Mul(v, s) y = MatMul(x, w) }"
    generator = np.random.default_rng(0)
    book = generator.standard_normal(16).astype(np.float32)
    values = book[generator.integers(0, 16, (64, 64))]
    model = build(text, v=values, s=np.linspace(0.1, 1, 64, dtype=np.float32))
    plain = contents(model)
    pack(model)
    assert unpack(model) == 1
    assert contents(model) == plain


def test_decodes_narrow_types(build: Build) -> None:
    text = "g (float[N,2] x) => (float[N,2] y) { w = Cast<to = 1>(h) y = MatMul(x, w)"
    text += " q = Cast<to = 3>(n) z = Size(q) }"
    model = build(text, 21, h=np.array([[0.5, -0.0], [2, 3]], np.float16))
    nibbles = helper.make_tensor("n", TensorProto.INT4, [3], [-8, 7, 1])
    model.graph.initializer.append(nibbles)
    assert unpack(model) == 2
    assert stored(model)["w"].tobytes() == np.array([[0.5, -0.0], [2, 3]], np.float32).tobytes()
    assert stored(model)["q"].tolist() == [-8, 7, 1]


def test_multiplies_plain_floats(build: Build) -> None:
    model = build(
        "g (float[N,2] x) => (float[N,2] y) { w = Mul(v, s) y = MatMul(x, w) }",
        v=np.array([[1, 2], [3, 4]], np.float32),
        s=np.array(2, np.float32),
    )
    assert unpack(model) == 1
    np.testing.assert_array_equal(stored(model)["w"], [[2, 4], [6, 8]])


def test_never_evaluates_dequantize_linear(build: Build) -> None:
    model = build(
        "g (float[N,2] x) => (float[N,2] y) { q = Reshape(p, n) w = DequantizeLinear(q, s)"
        " y = MatMul(x, w) }",
        p=np.arange(4, dtype=np.int8),
        n=np.array([2, 2], np.int64),
        s=np.array(0.5, np.float32),
    )
    assert unpack(model) == 1
    assert ops(model) == ["DequantizeLinear", "MatMul"]
    assert set(stored(model)) == {"q", "s"}


def test_leaves_what_is_not_constant(build: Build) -> None:
    model = build(
        "g (float[2] x, float[2] d) => (float[2] y, float[2] o)"
        "{ a = Add(d, k) b = Add(x, k) o = Add(k, k) c = Add(a, b) y = Relu(c) }",
        d=np.ones(2, np.float32),
        k=np.ones(2, np.float32),
    )
    before = model.SerializeToString()
    assert unpack(model) == 0
    assert model.SerializeToString() == before


def test_leaves_custom_domains_alone(build: Build) -> None:
    model = build(
        "g (float[2] x) => (float[2] y) { w = Add(k, k) y = Add(x, w) }", k=np.ones(2, np.float32)
    )
    model.opset_import.add(domain="my.domain", version=1)
    model.graph.node[0].domain = "my.domain"
    assert unpack(model) == 0
    assert ops(model) == ["Add", "Add"]


def test_leaves_a_constant_above_the_limit_to_the_runtime(build: Build) -> None:
    text = "g (float[1] x) => (float[N] y) { s = Add(h, h) b = ConstantOfShape(s) y = Add(x, b) }"
    model = build(text, h=np.array([1 << 28], np.int64))
    # The shape is still decoded: only the node that is too large stays.
    assert unpack(model) == 1
    assert ops(model) == ["ConstantOfShape", "Add"]
    assert stored(model)["s"].tolist() == [1 << 29]


def test_decodes_a_value_that_only_a_body_reads(build: Build) -> None:
    model = build(
        """g (bool c, float[2] x) => (float[2] y) {
            k = Add(o, o)
            y = If (c) <
                then_branch = t () => (float[2] p) { m = Add(k, k) p = Add(x, m) },
                else_branch = e () => (float[2] q) { q = Add(x, k) }
            >
        }""",
        o=np.ones(2, np.float32),
    )
    assert unpack(model) == 2
    onnx.checker.check_model(model, full_check=True)
    assert ops(model) == ["If"]
    assert list(stored(model)) == ["k"]
    branches = {a.name: a.g for a in model.graph.node[0].attribute}
    assert [t.name for t in branches["then_branch"].initializer] == ["m"]
    assert len(branches["then_branch"].node) == 1


def test_bodies_may_repeat_names(build: Build) -> None:
    model = build(
        """g (bool c, float[2] x) => (float[2] y) {
            y = If (c) <
                then_branch = t () => (float[2] p) { m = Add(o, o) p = Add(x, m) },
                else_branch = e () => (float[2] q) { m = Sub(o, o) q = Add(x, m) }
            >
        }""",
        o=np.ones(2, np.float32),
    )
    assert unpack(model) == 2
    branches = {a.name: a.g for a in model.graph.node[0].attribute}
    decoded = {n: numpy_helper.to_array(g.initializer[0]).tolist() for n, g in branches.items()}
    assert decoded == {"then_branch": [2, 2], "else_branch": [0, 0]}


def test_drops_the_notes_on_values_that_are_gone(build: Build) -> None:
    model = build(
        "g (float[2] x) => (float[2] y) { a = Add(k, k) w = Add(a, k) y = Add(x, w) }",
        k=np.ones(2, np.float32),
    )
    for name in ("a", "w"):
        model.graph.value_info.append(helper.make_tensor_value_info(name, 1, [2]))
    unpack(model)
    assert [v.name for v in model.graph.value_info] == ["w"]


def test_leaves_an_ir_version_whose_initializers_must_be_inputs(build: Build) -> None:
    model = build("g (float x) => (float y) { k = Constant<value_float = 1.0>() y = Add(x, k) }")
    model.ir_version = 3
    assert unpack(model) == 0
    assert ops(model) == ["Constant", "Add"]


def test_leaves_what_would_take_far_more_memory_than_the_file(build: Build) -> None:
    model = build(
        """g (float[1] x) => (float[n] y, float[4] z) {
            wide = Expand(one, huge)
            y = Add(x, wide)
            small = Expand(one, four)
            z = Add(x, small)
        }""",
        one=np.ones(1, np.float32),
        huge=np.array([1 << 27]),
        four=np.array([4]),
    )
    assert unpack(model) == 1
    assert ops(model) == ["Expand", "Add", "Add"]


def test_leaves_a_chain_that_doubles_itself_without_end(build: Build) -> None:
    lines = "\n".join(f"d{k + 1} = Concat<axis=0>(d{k}, d{k})" for k in range(50))
    model = build(f"g (float[1] x) => (int64[1] y) {{ {lines} y = Shape(d50) }}", d0=np.ones(4))
    assert unpack(model) == 0
    assert ops(model).count("Concat") == 50
