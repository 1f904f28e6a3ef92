from collections import Counter

import numpy as np
import onnx
import pytest

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
