from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from onnxslim_tk.measure.runtime import Session
from onnxslim_tk.passes.canonicalize import Canonicalize
from onnxslim_tk.plan.proposal import Context, Proposal
from onnxslim_tk.plan.targets import ONNXRUNTIME_CPU
from tests.models import model_of, normal, opened, to_proto

HEAD = '<ir_version: 8, opset_import: ["": 13]>'
CONSTANTS = {
    name: np.float32(value)
    for name, value in {"three": 3, "zero": 0, "six": 6, "sixth": 1 / 6, "seven": 7}.items()
}


def rewritten(proto: onnx.ModelProto) -> tuple[onnx.ModelProto, list[Proposal]]:
    """The model behind the pass, checked against the one before it."""
    model, context = opened(proto), Context(ONNXRUNTIME_CPU)
    rows = [row for row in Canonicalize().propose(model, context) if isinstance(row, Proposal)]
    Canonicalize().apply(model, rows, context)
    result = to_proto(model)
    onnx.checker.check_model(result, full_check=True)
    info = Session(proto.SerializeToString()).inputs[0]
    shape = [size if isinstance(size, int) else 1 for size in info.shape]
    feed = {info.name: 4 * normal(9, *shape)}
    expected = Session(proto.SerializeToString()).run(feed)
    found = Session(result.SerializeToString()).run(feed)
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-5, atol=1e-5)
    return result, rows


def operators(proto: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in proto.graph.node)


def gate(body: str) -> onnx.ModelProto:
    used = {name: value for name, value in CONSTANTS.items() if name in body}
    return model_of(f"{HEAD} g (float[1, 4, 8] x) => (float[A, B, C] y) {{ {body} }}", used)


@pytest.mark.parametrize(
    ("body", "left"),
    [
        (
            "a = Add(x, three) c = Clip(a, zero, six) m = Mul(x, c) y = Div(m, six)",
            {"HardSigmoid": 1, "Mul": 1},
        ),
        (
            "a = Add(three, x) c = Clip(a, zero, six) m = Mul(c, x) y = Mul(m, sixth)",
            {"HardSigmoid": 1, "Mul": 1},
        ),
        (
            "a = Add(x, three) c = Clip(a, zero, six) d = Div(c, six) y = Mul(x, d)",
            {"HardSigmoid": 1, "Mul": 1},
        ),
        ("a = Add(x, three) c = Clip(a, zero, six) y = Div(c, six)", {"HardSigmoid": 1}),
    ],
)
def test_a_hard_swish_that_is_spelled_out_becomes_a_gate(body: str, left: dict[str, int]) -> None:
    proto = gate(body)
    result, rows = rewritten(proto)
    assert operators(result) == left
    assert len(rows) == 1
    assert rows[0].bytes_saved > 0


@pytest.mark.parametrize(
    "body",
    [
        "a = Add(x, three) c = Clip(a, zero, six) y = Div(c, seven)",
        "a = Add(x, seven) c = Clip(a, zero, six) y = Div(c, six)",
        "a = Add(x, three) c = Clip(a, three, six) y = Div(c, six)",
        "a = Add(x, three) c = Clip(a, zero, six) d = Div(c, six) y = Mul(d, c)",
        "a = Add(x, three) c = Clip(a, zero, six) m = Div(c, six) y = Mul(m, a)",
        "a = Add(x, x) c = Clip(a, zero, six) y = Div(c, six)",
    ],
)
def test_what_only_looks_like_a_gate_stays(body: str) -> None:
    proto = gate(body)
    result, rows = rewritten(proto)
    assert operators(result) == operators(proto)
    assert rows == []


def tiles(attributes: str, shape: tuple[int, ...], behind: str = "") -> onnx.ModelProto:
    body = f"t = ConvTranspose<{attributes}>(x, w, b) {behind or 'y = Identity(t)'}"
    constants = {"w": normal(1, *shape), "b": normal(2, shape[1])}
    return model_of(
        f"{HEAD} g (float[1, 4, 5, 6] x) => (float[A, B, C, D] y) {{ {body} }}", constants
    )


def test_a_transposed_convolution_of_tiles_becomes_a_convolution() -> None:
    result, rows = rewritten(tiles("strides=[2,2]", (4, 3, 2, 2)))
    assert operators(result) == {"Conv": 1, "DepthToSpace": 1, "Identity": 1}
    assert rows[0].targets == ("t",)
    result, _ = rewritten(tiles("strides=[3,3]", (4, 3, 3, 3)))
    assert operators(result)["DepthToSpace"] == 1


def test_the_activation_behind_comes_before_the_pixels_are_placed() -> None:
    result, _ = rewritten(tiles("strides=[2,2]", (4, 3, 2, 2), "y = Relu(t)"))
    assert [node.op_type for node in result.graph.node] == ["Conv", "Relu", "DepthToSpace"]


@pytest.mark.parametrize(
    ("attributes", "shape"),
    [
        ("strides=[1,1]", (4, 3, 2, 2)),
        ("strides=[2,2]", (4, 3, 3, 3)),
        ("strides=[2,2], pads=[0,0,1,1]", (4, 3, 2, 2)),
        ("strides=[2,2], output_padding=[1,1]", (4, 3, 2, 2)),
        ("strides=[2,3]", (4, 3, 2, 3)),
        ("strides=[1,1]", (4, 3, 1, 1)),
    ],
)
def test_other_transposed_convolutions_stay(attributes: str, shape: tuple[int, ...]) -> None:
    result, rows = rewritten(tiles(attributes, shape))
    assert operators(result)["ConvTranspose"] == 1
    assert rows == []


def looked_up(
    body: str, feed: NDArray[Any], constants: Mapping[str, Any], opset: int = 13
) -> tuple[onnx.ModelProto, list[Proposal]]:
    """Rewritten, checked against the model before on numbers that no row has, too."""
    proto = model_of(
        f'<ir_version: 8, opset_import: ["": {opset}]> '
        f"g ({'int32' if feed.dtype == np.int32 else 'int64'}[N, 4, 1] x) => (float[A, B, C] y) "
        f"{{ {body} }}",
        {"w": normal(1, 5, 3), "count": np.arange(5, dtype=feed.dtype), **constants},
    )
    model, context = opened(proto), Context(ONNXRUNTIME_CPU)
    found = [row for row in Canonicalize().propose(model, context) if isinstance(row, Proposal)]
    Canonicalize().apply(model, found, context)
    result = to_proto(model)
    onnx.checker.check_model(result, full_check=True)
    before, after = (Session(p.SerializeToString()).run({"x": feed}) for p in (proto, result))
    np.testing.assert_allclose(after["y"], before["y"], rtol=1e-5, atol=1e-6)
    return result, found


NUMBERS = np.array([-7, -6, -5, -1, 0, 1, 4, 5, 6, 2**31 - 1, -(2**31), 3]).reshape(3, 4, 1)
ONE_HOT = "e = Equal(x, count) f = Cast<to=1>(e) "


@pytest.mark.parametrize("opset", [12, 13, 18])
@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_a_product_with_one_hot_rows_becomes_a_look_up(dtype: type, opset: int) -> None:
    result, rows = looked_up(f"{ONE_HOT} y = MatMul(f, w)", NUMBERS.astype(dtype), {}, opset)
    assert operators(result) == {"Squeeze": 1, "Clip": 1, "Gather": 1}
    assert [row.targets for row in rows] == [("y",)]


def test_one_hot_rows_by_their_own_operator_count_negative_numbers_from_the_end() -> None:
    body = "s = Squeeze(x, last) h = OneHot(s, five, ends) y = MatMul(h, w)"
    constants = {"last": np.array([2]), "five": np.array(5), "ends": np.array([0, 1], np.float32)}
    result, _ = looked_up(body, NUMBERS.astype(np.int64), constants)
    assert operators(result)["Gather"] == 1
    assert "OneHot" not in operators(result)


@pytest.mark.parametrize(
    ("body", "constants"),
    [
        ("e = Equal(x, other) f = Cast<to=1>(e) y = MatMul(f, w)", {"other": np.arange(1, 6)}),
        ("e = Equal(x, count) f = Cast<to=1>(e) g = Neg(f) y = MatMul(g, w)", {}),
        (f"{ONE_HOT} y = MatMul(f, bad)", {"bad": np.full((5, 3), np.inf, np.float32)}),
        (
            "s = Squeeze(x, last) h = OneHot(s, five, ends) y = MatMul(h, w)",
            {
                "last": np.array([2]),
                "five": np.array(5),
                "ends": np.array([0, 2], np.float32),
            },
        ),
    ],
)
def test_what_only_looks_like_one_hot_rows_stays(body: str, constants: dict[str, object]) -> None:
    result, rows = looked_up(body, NUMBERS.astype(np.int64), constants)
    assert rows == []
    assert operators(result)["MatMul"] == 1


def test_the_table_holds_what_is_done_to_each_of_its_rows() -> None:
    body = f"{ONE_HOT} m = MatMul(f, w) a = Add(m, b) t = Tanh(a) d = Mul(a, t) y = Relu(d)"
    result, rows = looked_up(body, NUMBERS.astype(np.int64), {"b": normal(2, 1, 1, 3)})
    assert operators(result) == {"Squeeze": 1, "Clip": 1, "Gather": 1}
    assert len(rows) == 1
    body = "s = Clip(x, none, four) q = Squeeze(s, last) g = Gather(w, q) a = Add(b, g) y = Tanh(a)"
    constants = {"none": np.array(0), "four": np.array(4), "last": np.array([2])}
    result, rows = looked_up(body, NUMBERS.astype(np.int64), {"b": normal(2, 3), **constants})
    assert operators(result) == {"Clip": 1, "Squeeze": 1, "Gather": 1}
    assert [row.setting for row in rows] == ["rows of a table"]


def test_only_what_comes_down_to_one_tensor_goes_into_the_table() -> None:
    body = f"{ONE_HOT} m = MatMul(f, w) t = Tanh(m) r = Relu(m) p = Mul(t, late) y = Add(p, r)"
    late = normal(3, 4, 1)
    result, _ = looked_up(body, NUMBERS.astype(np.int64), {"late": late})
    assert operators(result) == {
        **{"Squeeze": 1, "Clip": 1, "Gather": 1, "Tanh": 1},
        **{"Relu": 1, "Mul": 1, "Add": 1},
    }


def test_a_gate_that_went_into_the_table_is_not_written_again() -> None:
    body = (
        f"{ONE_HOT} m = MatMul(f, w) a = Add(m, three) c = Clip(a, zero, six) "
        "p = Mul(m, c) y = Div(p, six)"
    )
    used = {name: CONSTANTS[name] for name in ("three", "zero", "six")}
    result, rows = looked_up(body, NUMBERS.astype(np.int64), used)
    assert operators(result) == {"Squeeze": 1, "Clip": 1, "Gather": 1}
    assert len(rows) == 1


GELU = (
    "a = Mul(k, x) b = Mul(x, a) c = Mul(b, x) d = Add(x, c) e = Mul(root, d) f = Tanh(e) "
    "h = Add(f, one) i = Mul(half, h) g = Mul(x, i) "
)
PEAKS: dict[str, tuple[str, dict[str, int]]] = {
    "gelu": (GELU, {"ReduceMax": 1, "ReduceMin": 1, "Mul": 12, "Add": 4, "Tanh": 2, "Max": 1}),
    "silu": (
        "s = Sigmoid(x) g = Mul(x, s) ",
        {"ReduceMax": 1, "ReduceMin": 1, "Sigmoid": 2, "Mul": 2, "Max": 1},
    ),
    "a function that rises": (
        "s = Tanh(x) g = Mul(s, one) ",
        {"ReduceMax": 1, "Tanh": 1, "Mul": 1},
    ),
    "a function whose lowest value lies far out": (
        "z = Mul(x, tiny) s = Sigmoid(z) g = Mul(x, s) ",
        {"ReduceMax": 1, "ReduceMin": 1, "Sigmoid": 2, "Mul": 4, "Max": 1},
    ),
    "a function that falls by little": (
        "s = Tanh(x) g = Mul(s, less) ",
        {"ReduceMin": 1, "Tanh": 1, "Mul": 1},
    ),
    "a function that falls": (
        "s = Tanh(x) g = Sub(one, s) ",
        {"ReduceMin": 1, "Tanh": 1, "Sub": 1},
    ),
}


def peak(function: str, pool: str, opset: int = 13) -> onnx.ModelProto:
    numbers = {
        "k": 0.044715,
        "root": 0.7978846,
        "one": 1.0,
        "half": 0.5,
        "tiny": 1e-3,
        "less": -1e-6,
    }
    constants = {name: np.float32(value) for name, value in numbers.items() if name in function}
    given = {"axes": np.array([2])} if "axes)" in pool else {}
    return model_of(
        f'<ir_version: 8, opset_import: ["": {opset}]> g (float[2, 4, 30] x) => (float[A] y) '
        f"{{ {function} p = {pool} q = Flatten<axis=0>(p) y = Squeeze(q, first) }}",
        {**constants, **given, "first": np.array([0])},
    )


@pytest.mark.parametrize("pool", ["GlobalMaxPool(g)", "ReduceMax<axes=[-1], keepdims=0>(g)"])
@pytest.mark.parametrize("name", PEAKS)
def test_the_greatest_value_of_a_function_is_at_an_end_of_its_argument(
    name: str, pool: str
) -> None:
    function, left = PEAKS[name]
    result, rows = rewritten(peak(function, pool))
    assert operators(result) == {**left, "Flatten": 1, "Squeeze": 1}
    assert [row.setting for row in rows] == ["maximum before its function"]
    assert rows[0].targets == ("p",)


def test_axes_may_be_an_input() -> None:
    result, _ = rewritten(peak(PEAKS["silu"][0], "ReduceMax<keepdims=1>(g, axes)", 18))
    assert operators(result)["ReduceMin"] == 1


@pytest.mark.parametrize(
    ("function", "pool"),
    [
        ("g = Relu(x)", "GlobalMaxPool(g)"),
        ("s = Mul(x, x) t = Mul(s, x) g = Sub(t, x)", "GlobalMaxPool(g)"),
        ("s = Tanh(x) n = Neg(s) g = Mul(n, s)", "GlobalMaxPool(g)"),
        ("s = Sigmoid(x) g = Mul(x, s)", "GlobalAveragePool(g)"),
        ("s = Sigmoid(x) g = Mul(x, s)", "MaxPool<kernel_shape=[2]>(g)"),
    ],
)
def test_a_pool_stays_behind_other_functions(function: str, pool: str) -> None:
    _, rows = rewritten(peak(function, pool))
    assert rows == []
