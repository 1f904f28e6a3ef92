from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import pytest

from onnxslim_tk.graph.groups import Barrier, Group, channel_groups
from tests.models import depthwise_cnn, mlp, model_of, normal, opened, residual_cnn

SHAPES: Mapping[str, tuple[int, ...]] = {}


def found(
    body: str, shapes: Mapping[str, tuple[int, ...]] = SHAPES, **more: Any
) -> dict[tuple[str, ...], Group | Barrier]:
    """Groups and barriers of a model on ``x (N, 3, 4, 4)`` by id; any weight ``w*`` is given."""
    header = '<ir_version: 8, opset_import: ["": 17]>'
    text = f"{header} g (float[N, 3, 4, 4] x) => (float y) {{{body}}}"
    constants: dict[str, Any] = {
        "w1": normal(1, 8, 3, 1, 1),
        "w2": normal(2, 8, 8, 1, 1),
        "w3": normal(3, 5, 8, 1, 1),
        "wg": normal(4, 8, 4, 1, 1),
        "wm": normal(5, 8, 5),
        "wf": normal(6, 5, 128),
        **more,
    }
    used = {name: value for name, value in constants.items() if name in body}
    groups = channel_groups(opened(model_of(text, used)), shapes)
    return {group.id: group for group in groups}


def reason(body: str, of: str = "c", **more: Any) -> str:
    group = next(g for key, g in found(body, **more).items() if of in key)
    assert isinstance(group, Barrier)
    return group.reason


def group(proto: onnx.ModelProto, key: tuple[str, ...]) -> Group:
    result = {g.id: g for g in channel_groups(opened(proto), SHAPES)}[key]
    assert isinstance(result, Group)
    return result


def slots(found: Group) -> set[tuple[str, int, int, int]]:
    """Cuts as (tensor, axis, size, entries of one channel)."""
    result = set()
    for cut in found.view.flow.cuts:
        on = found.channels_on(cut.labels)
        if (on >= 0).any():
            tensor = cut.node.inputs[cut.slot]
            block = int((on >= 0).sum()) // found.count
            result.add((tensor.name, cut.axis, tensor.shape[cut.axis], block))
    return result


def counted(found: Group) -> list[tuple[str, int, int, int]]:
    """Numbers that count the channels as (attribute, slot, index, entries of one channel)."""
    flow = found.view.flow
    return [
        (count.attribute, count.slot, count.index, int((on >= 0).sum()) // found.count)
        for count in flow.counts.values()
        if ((on := found.channels_on(count.labels)) >= 0).any()
    ]


def test_a_chain_cuts_its_makers_outputs_and_its_readers_inputs() -> None:
    result = group(mlp(), ("m1",))
    assert slots(result) == {("w1", 1, 64, 1), ("b1", 0, 64, 1), ("w2", 0, 64, 1)}
    assert [layer.id for layer in result.consumers] == ["g2"]
    assert slots(group(mlp(), ("g2",))) == {("w2", 1, 48, 1), ("b2", 0, 48, 1), ("w3", 1, 48, 1)}


def test_additions_tie_all_that_they_sum() -> None:
    result = group(residual_cnn(), ("c0", "c2", "c4"))
    assert [layer.id for layer in result.consumers] == ["c1", "c3", "y"]
    assert {name for name, *_ in slots(result)} == {
        *("w0", "b0", "w2", "b2", "w4", "b4"),
        *("w1", "w3", "w5"),
    }


def test_a_depthwise_convolution_passes_its_channels_and_loses_groups() -> None:
    result = group(depthwise_cnn(), ("c1",))
    assert [layer.id for layer in result.passing] == ["c2"]
    assert ("w2", 0, 16, 1) in slots(result)
    assert counted(result) == [("group", 0, 0, 1)]


def test_flattening_makes_a_channel_a_run_of_inputs() -> None:
    body = "c = Conv(x, w1) r = Relu(c) f = Flatten(r) y = Gemm<transB=1>(f, wf)"
    result = found(body)[("c",)]
    assert isinstance(result, Group)
    assert ("wf", 1, 128, 16) in slots(result)


@pytest.mark.parametrize(
    "operator",
    [
        "t = Relu(c)",
        "t = Clip(c)",
        "t = Dropout(c)",
        "t = MaxPool<kernel_shape=[2, 2]>(c)",
        "t = AveragePool<kernel_shape=[2, 2]>(c)",
        "t = GlobalAveragePool(c)",
        "t = GlobalMaxPool(c)",
        "t = Mul(c, scalar)",
        "t = Max(c, vector)",
        "t = Div(vector, c)",
        "t = PRelu(c, vector)",
        "s = Sigmoid(c) t = Mul(c, s)",
        "t = CumSum(c, last)",
        "t = Pad(c, pads)",
        "t = Resize(c, , scales)",
        "t = Resize(c, , , sizes)",
    ],
)
def test_channels_pass(operator: str) -> None:
    constants: dict[str, Any] = {
        "scalar": np.float32(2),
        "last": np.array(-1),
        "vector": normal(7, 8, 1, 1),
        "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1]),
        "scales": np.array([1, 1, 2, 2], np.float32),
        "sizes": np.array([1, 8, 6, 6]),
    }
    result = found(f"c = Conv(x, w1) {operator} y = Conv(t, w2)", **constants)[("c",)]
    assert isinstance(result, Group)
    expected = {("w1", 0, 8, 1), ("w2", 1, 8, 1)}
    assert slots(result) == expected | ({("vector", 0, 8, 1)} if "vector" in operator else set())


@pytest.mark.parametrize(
    ("body", "because"),
    [
        ("c = Conv(x, w1) t = Softmax<axis=1>(c) y = Conv(t, w2)", "Softmax 't' ties its channels"),
        ("c = Conv(x, w1) t = CumSum(c, one) y = Conv(t, w2)", "CumSum 't' ties its channels"),
        (
            "a = ArgMax<keepdims=0>(x) b = Squeeze(a) c = Conv(x, w1) t = CumSum(c, b) "
            "y = Conv(t, w2)",
            "CumSum 't' ties its channels",
        ),
        ("c = Conv(x, w1) t = LRN<size=3>(c) y = Conv(t, w2)", "LRN 't' ties its channels"),
        ("c = Conv(x, w1) y = MatMul(c, c)", "the channels reach output 'y'"),
        ("c = Conv(x, w1) y = Relu(c)", "the channels reach output 'y'"),
        ("c = Conv(x, w1) y = Shape(c)", "Shape 'y' reads the number of channels"),
        (
            "c = Conv(x, w1) u = Tile(x, four) v = Slice(u, zero, eight, one) t = Add(c, v) "
            "y = Conv(t, w2)",
            "Add 't' ties its channels to a tensor that no layer makes",
        ),
        (
            "c = Conv(x, wone) d = Conv(x, w1) t = Mul(c, d) y = Conv(t, w2)",
            "Mul 't' joins channels of different numbers",
        ),
        (
            "c = Conv(x, w1) t, m = MaxPool<kernel_shape=[2, 2]>(c) z = Conv(t, w2) y = Abs(m)",
            "a further output of MaxPool 't' is read",
        ),
        ("c = Conv(x, w1) t = Resize(c, , wide) y = Conv(t, w16)", "Resize 't' ties its channels"),
        ("c = Conv(x, w1) i = Reshape(c, uneven) y = Relu(i)", "Reshape 'i' ties its channels"),
        (
            "b = ReduceMean<axes=[0, 2, 3], keepdims=0>(x) u = Tile(b, four_) v = Slice(u, zero, "
            "eight) c = Conv(x, w1, v) y = Conv(c, w2)",
            "the bias of Conv 'c' is not a constant",
        ),
        ("c = Conv(x, wone) t = Add(c, row8) y = Conv(t, w2)", "Add 't' joins channels"),
        ("y = Conv(x, w1) c = Conv(y, w2)", "no layer reads the channels"),
    ],
)
def test_what_stops_a_cut_is_named(body: str, because: str) -> None:
    constants: dict[str, Any] = {
        "wone": normal(8, 1, 3, 1, 1),
        "w16": normal(9, 5, 16, 1, 1),
        "row8": normal(13, 8, 1, 1),
        "wide": np.array([1, 2, 1, 1], np.float32),
        "uneven": np.array([2, 3, -1]),
        "four": np.array([1, 4, 1, 1]),
        "four_": np.array([4]),
        "zero": np.array([0]),
        "one": np.array([1]),
        "eight": np.array([8]),
    }
    assert reason(body, **constants).startswith(because)


def test_weights_behind_a_scale_are_a_barrier() -> None:
    body = "q = DequantizeLinear(w8, s) c = Conv(x, w1) d = Conv(c, q) y = Relu(d)"
    constants: dict[str, Any] = {"w8": np.ones((8, 8, 1, 1), np.int8), "s": np.float32(0.1)}
    expected = "the weight of Conv 'd' is stored behind a scale"
    assert reason(body, **constants) == expected


def test_a_loop_holds_what_goes_in_and_out_of_it() -> None:
    body = """c = Conv(x, w1)
        y = Loop(times, , c) <
            body = b (int64 i, bool go, float[N, 8, 4, 4] h) =>
                (bool on, float[N, 8, 4, 4] k) { on = Identity(go) k = Conv(h, w2) }
        >"""
    result = found(body, times=np.array(3))
    assert {type(group) for group in result.values()} == {Barrier}


BATCH = "s = Shape(p) b = Gather(s, zero) e = Unsqueeze(b, zeros) t = Concat<axis=0>(e, rest)"


@pytest.mark.parametrize(
    ("body", "counts"),
    [
        ("r = Reshape(p, keep)", []),
        ("r = Reshape(p, number)", [(1, 1, 16)]),
        (f"{BATCH} r = Reshape(p, t)", [(1, 0, 16)]),
    ],
)
def test_a_reshape_that_flattens_passes_where_shapes_show_it(
    body: str, counts: list[tuple[int, int, int]]
) -> None:
    constants: dict[str, Any] = {
        "keep": np.array([0, -1]),
        "number": np.array([-1, 128]),
        "rest": np.array([128]),
        "zero": np.array(0),
        "zeros": np.array([0]),
    }
    whole = f"c = Conv(x, w1) p = Relu(c) {body} y = Gemm<transB=1>(r, wf)"
    result = found(whole, **constants)[("c",)]
    assert isinstance(result, Group)
    assert [stated[1:] for stated in counted(result)] == counts


def test_before_operator_set_13_all_axes_from_the_first_on_are_one() -> None:
    for op in ("Hardmax", "LogSoftmax", "Softmax"):
        text = f"""<ir_version: 8, opset_import: ["": 11]>
        g (float[N, 3, 4, 4] x) => (float[N, 5, 4, 4] y) {{
            c = Conv(x, w1) t = {op}(c) y = Conv(t, w3)
        }}"""
        proto = model_of(text, {"w1": normal(1, 8, 3, 1, 1), "w3": normal(3, 5, 8, 1, 1)})
        first = channel_groups(opened(proto), SHAPES)[0]
        assert isinstance(first, Barrier)
        assert first.reason == f"{op} 't' ties its channels"


def test_channels_that_are_normalized_together_stay() -> None:
    """A normalization of groups: what goes would change the mean of what stays."""
    text = """<ir_version: 8, opset_import: ["": 17]>
    g (float[N, 3] x) => (float[N, 5] y) {
        c = Gemm(x, w1)
        r = Reshape(c, apart)
        n = InstanceNormalization(r, scale, bias)
        t = Reshape(n, joined)
        y = Gemm(t, w2)
    }"""
    constants = {
        "w1": normal(1, 3, 8),
        "w2": normal(2, 8, 5),
        "apart": np.array([0, 2, 4]),
        "joined": np.array([0, 8]),
        "scale": normal(3, 2),
        "bias": normal(4, 2),
    }
    first = channel_groups(opened(model_of(text, constants)), SHAPES)[0]
    assert isinstance(first, Barrier)
    assert first.reason == "InstanceNormalization 'n' ties its channels"
