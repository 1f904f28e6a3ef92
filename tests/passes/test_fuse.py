from typing import Any

import numpy as np
import onnx
import pytest

from onnxslim_tk.graph.layers import layers
from onnxslim_tk.graph.model import Model
from onnxslim_tk.passes.fuse import Fuse
from onnxslim_tk.plan.proposal import Context, Proposal, Refusal
from tests.models import (
    CONTEXT,
    chain_cnn,
    depthwise_cnn,
    digest,
    mlp,
    model_of,
    normal,
    opened,
    operators,
    outputs,
    outputs_of,
    residual_cnn,
    statistics,
    to_proto,
    with_metadata,
)

IMAGE = normal(1, 2, 4, 9, 9)


def image(body: str, **constants: Any) -> onnx.ModelProto:
    opset, out = constants.pop("opset", 17), constants.pop("out", "A, B, C, D")
    text = f"""<ir_version: 8, opset_import: ["": {opset}]>
    g (float[N, 4, 9, 9] x) => (float[{out}] y) {{ {body} }}"""
    return model_of(text, constants)


def table(body: str, **constants: Any) -> onnx.ModelProto:
    text = f"""<ir_version: 8, opset_import: ["": 17]>
    g (float[N, 6] x) => (float[N, M] y) {{ {body} }}"""
    return model_of(text, constants)


def found(model: Model, context: Context = CONTEXT) -> tuple[list[Proposal], dict[str, str]]:
    rows = list(Fuse().propose(model, context))
    refusals = {row.target: row.reason for row in rows if isinstance(row, Refusal)}
    return [row for row in rows if isinstance(row, Proposal)], refusals


def fused(proto: onnx.ModelProto, x: Any = IMAGE) -> tuple[Model, list[Proposal]]:
    """The fused model and its rows, after all that is promised of any was checked."""
    model = opened(proto)
    before, size = digest(model), to_proto(model).ByteSize()
    rows, _ = found(model)
    assert digest(model) == before
    assert all(row.error == 0 for row in rows)
    Fuse().apply(model, rows, CONTEXT)
    saved = size - to_proto(model).ByteSize()
    assert sum(row.bytes_saved for row in rows) == pytest.approx(saved, abs=8 * len(rows))
    assert found(model)[0] == []
    expected = outputs(proto, {"x": x})
    for name, values in outputs_of(model, {"x": x}).items():
        np.testing.assert_allclose(values, expected[name], rtol=1e-4, atol=1e-5)
    return model, rows


def refused(proto: onnx.ModelProto) -> dict[str, str]:
    """Why nothing is folded, where nothing is."""
    rows, refusals = found(opened(proto))
    assert rows == []
    return refusals


def per_channel(seed: int, channels: int, rank: int = 4) -> Any:
    shape = [1, channels] + [1] * (rank - 2) if rank > 2 else [channels]
    return 1 + normal(seed, channels, scale=0.4).reshape(shape)


NORMALIZED = "n = BatchNormalization<epsilon = 0.01>(c, as, ab, am, av) y = Relu(n)"


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("layer", "shape", "channels"),
    [
        ("Conv<pads = [1, 1, 1, 1]>", (6, 4, 3, 3), 6),
        ("Conv<auto_pad = 'SAME_UPPER'>", (6, 4, 3, 3), 6),
        ("Conv<group = 2>", (6, 2, 3, 3), 6),
        ("Conv<group = 4>", (4, 1, 3, 3), 4),
        ("ConvTranspose<strides = [2, 2]>", (4, 6, 2, 2), 6),
        ("ConvTranspose<group = 2, strides = [2, 2]>", (4, 3, 2, 2), 6),
    ],
)
def test_folds_a_normalization_into_the_convolution_before_it(
    layer: str, shape: tuple[int, ...], channels: int, bias: bool
) -> None:
    body = f"c = {layer}(x, w{', b' if bias else ''}) {NORMALIZED}".replace("'", '"')
    constants = {"w": normal(0, *shape), **statistics(2, channels, "a")}
    if bias:
        constants["b"] = normal(9, channels)
    model, (row,) = fused(image(body, **constants))
    assert operators(model) == [layer.split("<")[0], "Relu"]
    assert (row.targets, row.setting) == (("c",), "BatchNormalization")
    assert row.details == {"folded": ["n"]}


@pytest.mark.parametrize(
    ("gemm", "bias"),
    [
        ("Gemm(x, w, b)", (5,)),
        ("Gemm(x, w)", None),
        ("Gemm<alpha = 0.5, beta = 3.0>(x, w, b)", (1, 5)),
        ("Gemm<beta = 0.25>(x, w, b)", (1,)),
        ("Gemm<transB = 1>(x, t, b)", (5,)),
    ],
)
def test_folds_a_normalization_into_the_gemm_before_it(
    gemm: str, bias: tuple[int, ...] | None
) -> None:
    constants = {"w": normal(0, 6, 5), "t": normal(0, 5, 6), **statistics(2, 5, "a")}
    if bias:
        constants["b"] = normal(9, *bias)
    model, _ = fused(table(f"c = {gemm} {NORMALIZED}", **constants), normal(1, 3, 6))
    assert operators(model) == ["Gemm", "Relu"]


def test_a_normalization_behind_a_matmul_leaves_an_addition() -> None:
    constants = {"w": normal(0, 6, 5), **statistics(2, 5, "a")}
    model, _ = fused(table(f"c = MatMul(x, w) {NORMALIZED}", **constants), normal(1, 3, 6))
    assert operators(model) == ["MatMul", "Add", "Relu"]


def test_folds_into_a_matmul_and_its_addition() -> None:
    body = f"""m = MatMul(x, w) c = Add(b, m) {NORMALIZED}"""
    constants = {"w": normal(0, 6, 5), "b": normal(9, 5), **statistics(2, 5, "a")}
    model, (row,) = fused(table(body, **constants), normal(1, 3, 6))
    assert operators(model) == ["MatMul", "Add", "Relu"]
    assert row.targets == ("m",)


@pytest.mark.parametrize(
    ("tail", "left"),
    [
        ("y = Mul(c, v)", []),
        ("y = Mul(v, c)", []),
        ("y = Div(c, v)", []),
        ("y = Add(v, c)", []),
        ("y = Sub(c, v)", []),
        ("y = Sub(v, c)", []),
        ("y = Mul(c, one)", []),
        ("d = Mul(c, v) e = Add(d, v) f = Div(e, one) y = Sub(one, f)", []),
        ("d = BatchNormalization(c, as, ab, am, av) e = Mul(d, v) y = Add(e, one)", []),
        ("y = Div(v, c)", ["Div"]),
        ("y = Mul(c, c)", ["Mul"]),
        ("y = Mul(c, spatial)", ["Mul"]),
        ("y = Add(c, last)", ["Add"]),
        ("y = Div(c, zero)", ["Div"]),
    ],
)
def test_folds_arithmetic_behind_a_convolution(tail: str, left: list[str]) -> None:
    constants = {
        "w": normal(0, 6, 4, 3, 3),
        "v": per_channel(1, 6),
        "one": np.float32(1.7),
        "spatial": normal(2, 1, 1, 7, 7),
        "last": normal(3, 7),
        "zero": np.array([0], np.float32),
        **statistics(4, 6, "a"),
    }
    proto = image(f"c = Conv(x, w) {tail}", **constants)
    if left:
        assert refused(proto) == {}
        return
    model, (row,) = fused(proto)
    assert operators(model) == ["Conv"]
    assert len(row.details["folded"]) == len(proto.graph.node) - 1


@pytest.mark.parametrize("tail", ["y = Add(s, v)", "d = Mul(v, s) y = Sub(d, one)"])
def test_folds_arithmetic_behind_the_squeeze_of_a_convolution_along_one_axis(tail: str) -> None:
    constants = {"w": normal(0, 6, 4, 3, 9), "v": normal(1, 1, 6, 1), "one": np.float32(1.7)}
    constants["last"] = np.array([3])
    proto = image(f"c = Conv(x, w) s = Squeeze(c, last) {tail}", out="A, B, C", **constants)
    model, (row,) = fused(proto)
    assert operators(model) == ["Conv", "Squeeze"]
    assert len(row.details["folded"]) == len(proto.graph.node) - 2


def test_leaves_arithmetic_behind_a_squeeze_that_is_not_per_channel() -> None:
    constants = {"w": normal(0, 6, 4, 3, 9), "v": normal(1, 7), "last": np.array([3])}
    proto = image("c = Conv(x, w) s = Squeeze(c, last) y = Add(s, v)", out="A, B, C", **constants)
    assert refused(proto) == {}


def test_leaves_a_constant_that_widens_the_output() -> None:
    proto = image("c = Conv(x, w) y = Add(c, v)", w=normal(0, 1, 4, 3, 3), v=per_channel(1, 6))
    assert refused(proto) == {}


@pytest.mark.parametrize("tail", ["y = Mul(c, v)", "d = Mul(c, v) e = Add(d, v) y = Mul(e, s)"])
def test_folds_arithmetic_behind_a_matmul(tail: str) -> None:
    text = """<ir_version: 8, opset_import: ["": 17]>
    g (float[N, 3, 6] x) => (float[A, B, C] y) { c = MatMul(x, w) TAIL }""".replace("TAIL", tail)
    constants = {"w": normal(0, 6, 5), "v": per_channel(1, 5, 1), "s": np.float32(0.125)}
    model, _ = fused(model_of(text, constants), normal(2, 2, 3, 6))
    assert operators(model) == ["MatMul"] + ["Add"] * ("Add" in tail)


def test_leaves_the_addition_behind_a_matmul_alone() -> None:
    assert refused(mlp()) == {}


@pytest.mark.parametrize(
    "layer", ["Conv(n, w, b)", "Conv<group = 2>(n, half)", "Conv<auto_pad = 'VALID'>(n, w)"]
)
def test_folds_a_normalization_into_the_convolution_behind_it(layer: str) -> None:
    body = f"r = Relu(x) n = BatchNormalization(r, as, ab, am, av) y = {layer}".replace("'", '"')
    constants = {
        "w": normal(0, 6, 4, 3, 3),
        "half": normal(0, 6, 2, 3, 3),
        "b": normal(9, 6),
        **statistics(2, 4, "a"),
    }
    model, (row,) = fused(image(body, **constants))
    assert operators(model) == ["Relu", "Conv"]
    assert row.targets == ("y",)


@pytest.mark.parametrize(
    "gemm", ["Gemm<alpha = 0.5, beta = 2.0>(n, w, b)", "Gemm<transB = 1>(n, t)"]
)
def test_folds_a_normalization_into_the_gemm_behind_it(gemm: str) -> None:
    body = f"r = Relu(x) n = BatchNormalization(r, as, ab, am, av) y = {gemm}"
    constants = {"w": normal(0, 6, 5), "t": normal(0, 5, 6), "b": normal(9, 5)}
    model, _ = fused(table(body, **constants, **statistics(2, 6, "a")), normal(1, 3, 6))
    assert operators(model) == ["Relu", "Gemm"]


def test_folds_a_normalization_into_all_layers_behind_it() -> None:
    body = """r = Relu(x) n = BatchNormalization(r, as, ab, am, av)
    c = Conv(n, w) d = Conv(n, v) y = Add(c, d)"""
    constants = {"w": normal(0, 6, 4, 3, 3), "v": normal(1, 6, 4, 3, 3), **statistics(2, 4, "a")}
    model, rows = fused(image(body, **constants))
    assert operators(model) == ["Relu", "Conv", "Conv", "Add"]
    assert [row.targets for row in rows] == [("c",), ("d",)]


def test_a_part_of_the_rows_is_exact_too() -> None:
    body = """r = Relu(x) n = BatchNormalization(r, as, ab, am, av)
    c = Conv(n, w) d = Conv(n, v) y = Add(c, d)"""
    constants = {"w": normal(0, 6, 4, 3, 3), "v": normal(1, 6, 4, 3, 3), **statistics(2, 4, "a")}
    proto = image(body, **constants)
    model = opened(proto)
    rows, _ = found(model)
    Fuse().apply(model, rows[1:], CONTEXT)
    assert operators(model).count("BatchNormalization") == 1
    np.testing.assert_allclose(
        outputs_of(model, {"x": IMAGE})["y"], outputs(proto, {"x": IMAGE})["y"], 1e-4, 1e-4
    )


def test_a_normalization_between_two_layers_goes_into_the_first() -> None:
    body = "c = Conv(x, w) n = BatchNormalization(c, as, ab, am, av) y = Conv(n, v)"
    constants = {"w": normal(0, 6, 4, 3, 3), "v": normal(1, 5, 6, 3, 3), **statistics(2, 6, "a")}
    _, (row,) = fused(image(body, **constants))
    assert row.targets == ("c",)


def test_says_why_a_normalization_stays() -> None:
    four = statistics(2, 4, "a")
    before = "r = Relu(x) n = BatchNormalization(r, as, ab, am, av)"
    weight = {"w": normal(0, 4, 4, 3, 3)}
    cases = {
        "y = Conv<pads = [1, 1, 1, 1]>(n, w)": "what reads it pads, or is not only layers",
        "c = Conv(n, w) d = Relu(n) e = Slice(d, lo, hi, lo) y = Add(c, e)": (
            "what reads it pads, or is not only layers"
        ),
        "y = ConvTranspose(n, w)": "what reads it pads, or is not only layers",
        "y = Relu(n)": "there is no layer right before or behind it",
    }
    axes = {"lo": np.array([2, 3]), "hi": np.array([9, 9])}
    for body, reason in cases.items():
        assert refused(image(f"{before} {body}", **four, **weight, **axes)) == {"n": reason}
    six, wide = statistics(2, 6, "a"), {"w": normal(0, 6, 4, 3, 3)}
    shared = """c = Conv(x, w) d = Conv(x, w)
    n = BatchNormalization(c, as, ab, am, av) y = Add(n, d)"""
    assert refused(image(shared, **six, **wide)) == {
        "n": "the weight of the layer beside it is shared with another layer"
    }
    read_twice = "c = Conv(x, w) n = BatchNormalization(c, as, ab, am, av) y = Add(n, c)"
    assert refused(image(read_twice, **six, **wide)) == {
        "n": "the output of the layer before it is read elsewhere too"
    }
    stored = f"w = DequantizeLinear(q, s) c = Conv(x, w) {NORMALIZED}"
    codes = {"q": np.ones((6, 4, 3, 3), np.int8), "s": np.float32(0.1)}
    assert refused(image(stored, **six, **codes)) == {
        "n": "the weight of the layer beside it is no dense float32 constant"
    }
    training = "c = Conv(x, w) y, p, q = BatchNormalization<training_mode = 1>(c, as, ab, am, av)"
    assert refused(image(training, **six, **wide)) == {
        "y": "it normalizes by the batch, not by constants"
    }
    computed = "c = Conv(x, w) m = ReduceMean<axes = [0, 2, 3], keepdims = 0>(c)"
    computed += " y = BatchNormalization(c, as, ab, m, av)"
    assert refused(image(computed, **six, **wide)) == {
        "y": "its statistics are not float32 constants"
    }
    broken = {**six, "av": np.full(6, -1, np.float32)}
    assert refused(image(f"c = Conv(x, w) {NORMALIZED}", **broken, **wide)) == {
        "n": "its statistics are not finite"
    }


def test_shifts_may_go_beside_a_shared_weight() -> None:
    body = "c = Conv(x, w) d = Conv(x, w) e = Add(c, v) y = Mul(e, d)"
    model, _ = fused(image(body, w=normal(0, 6, 4, 3, 3), v=per_channel(1, 6)))
    assert operators(model) == ["Conv", "Conv", "Mul"]


def test_never_changes_a_constant_that_others_read() -> None:
    # The bias of the layer is the shift of its normalization, and is read a third time.
    body = """wide = Reshape(ab, s) c = Conv(x, w, ab)
    n = BatchNormalization(c, as, ab, am, av) y = Mul(n, wide)"""
    constants = {"w": normal(0, 6, 4, 3, 3), "s": np.array([1, 6, 1, 1]), **statistics(2, 6, "a")}
    model, _ = fused(image(body, **constants))
    assert operators(model) == ["Reshape", "Conv", "Mul"]


def test_does_not_take_the_last_axis_for_the_channels() -> None:
    assert (
        refused(image("c = Conv(x, w) y = Mul(c, v)", w=normal(0, 7, 4, 3, 3), v=normal(1, 7)))
        == {}
    )


@pytest.mark.parametrize(
    "auto", ["pads = [0, 1, 2, 0]", "auto_pad = 'VALID'", "dilations = [1, 1]"]
)
def test_zeros_around_the_input_become_the_convolutions_own(auto: str) -> None:
    body = f"p = Pad(x, pads) y = Conv<{auto}>(p, w)".replace("'", '"')
    pads = np.array([0, 0, 1, 2, 0, 0, 3, 0])
    model, (row,) = fused(image(body, w=normal(0, 6, 4, 3, 3), pads=pads))
    assert operators(model) == ["Conv"]
    assert row.details == {"folded": ["p"]}


def test_leaves_wide_padding_that_the_runtime_is_slow_with() -> None:
    pads = {k: np.array([0, 0, 0, k, 0, 0, 0, 0]) for k in (3, 4)}
    weight = normal(0, 6, 4, 3, 3)
    assert operators(
        fused(image("p = Pad(x, pads) y = Conv(p, w)", w=weight, pads=pads[3]))[0]
    ) == ["Conv"]
    assert refused(image("p = Pad(x, pads) y = Conv(p, w)", w=weight, pads=pads[4])) == {}


def test_reads_a_pad_of_any_operator_set() -> None:
    old = "p = Pad<pads = [0, 0, 1, 2, 0, 0, 3, 0]>(x) y = Conv(p, w)"
    assert operators(fused(image(old, opset=10, w=normal(0, 6, 4, 3, 3)))[0]) == ["Conv"]
    new = "p = Pad(x, pads, , axes) y = Conv(p, w)"
    constants = {"pads": np.array([2, 1, 0, 3]), "axes": np.array([-1, 2])}
    proto = image(new, opset=18, w=normal(0, 6, 4, 3, 3), **constants)
    assert operators(fused(proto)[0]) == ["Conv"]


@pytest.mark.parametrize(
    "pad",
    [
        "Pad(x, wide)",
        "Pad(x, pads, two)",
        "Pad<mode = 'reflect'>(x, pads)",
        "Pad(x, crop)",
        "Pad(x, batch)",
    ],
)
def test_keeps_a_pad_of_anything_else(pad: str) -> None:
    body = f"p = {pad} y = Conv(p, w)".replace("'", '"')
    constants = {
        "pads": np.array([0, 0, 1, 2, 0, 0, 3, 0]),
        "wide": np.array([0, 0, 4, 0, 0, 0, 0, 0]),
        "crop": np.array([0, 0, -1, 0, 0, 0, 0, 0]),
        "batch": np.array([1, 0, 0, 0, 0, 0, 0, 0]),
        "two": np.float32(2),
    }
    assert refused(image(body, w=normal(0, 6, 4, 3, 3), **constants)) == {}


def test_the_layer_answers_to_all_names_and_keeps_its_id() -> None:
    model = opened(with_metadata(chain_cnn()))
    rows, _ = found(model)
    Fuse().apply(model, rows, CONTEXT)
    assert [row.targets for row in rows] == [("c1",), ("c2",)]
    first = next(layers(model))
    assert first.output.name == "n1"
    assert first.names == ("c1", "node/c1", "n1", "node/n1")
    again = [layer.id for layer in layers(model.copy())]
    assert again == ["c1", "c2", "y"]


@pytest.mark.parametrize("build", [residual_cnn, mlp, depthwise_cnn])
def test_leaves_to_the_runtime_what_it_fuses_itself(build: Any) -> None:
    assert refused(build()) == {}


def test_keeps_out_what_the_user_excludes() -> None:
    context = Context(target=CONTEXT.target, exclude=("node/c1",))
    rows, refusals = found(opened(with_metadata(chain_cnn())), context)
    assert [row.targets for row in rows] == [("c2",)]
    assert refusals == {"n1": "the layer before it has other channels, or is left out"}


def test_reaches_into_bodies_but_never_across_their_border() -> None:
    text = """<ir_version: 8, opset_import: ["": 17]>
    g (bool c, float[N, 6] x) => (float[A, B] y) {
        m = Gemm(x, w)
        y = If(c)<
            then_branch = yes () => (float[A, B] p) { p = Mul(m, s) },
            else_branch = no () => (float[A, B] q) { g = Gemm(x, v) q = Mul(g, s) }
        >
    }"""
    constants = {"w": normal(0, 6, 5), "v": normal(1, 6, 5), "s": per_channel(2, 5, 1)}
    proto = model_of(text, constants)
    model = opened(proto)
    rows, _ = found(model)
    assert [row.targets for row in rows] == [("y/else_branch/g",)]
    Fuse().apply(model, rows, CONTEXT)
    for c in (True, False):
        feed = {"c": np.array(c), "x": normal(3, 2, 6)}
        expected = outputs(proto, feed)["y"]
        np.testing.assert_allclose(outputs_of(model, feed)["y"], expected, 1e-5, 1e-6)


def test_keeps_the_names_of_outputs() -> None:
    text = """<ir_version: 8, opset_import: ["": 17]>
    g (float[N, 6] x) => (float[N, 5] y, float[N, 5] z) { y = Gemm(x, w) z = Mul(y, s) }"""
    assert refused(model_of(text, {"w": normal(0, 6, 5), "s": np.float32(2)})) == {}


def test_the_same_model_gives_the_same_bytes() -> None:
    first, second = (opened(chain_cnn()) for _ in range(2))
    for model in (first, second):
        Fuse().apply(model, found(model)[0], CONTEXT)
    assert digest(first) == digest(second)


@pytest.mark.parametrize("layer", ["Conv<pads = [1, 1, 1, 1]>", "ConvTranspose"])
def test_folds_a_normalization_past_a_relu_as_a_floor_for_every_channel(layer: str) -> None:
    body = f"c = {layer}(x, w, b) r = Relu(c) y = BatchNormalization(r, as, ab, am, av)"
    shape = (6, 4, 3, 3) if layer.startswith("Conv<") else (4, 6, 3, 3)
    constants = {"w": normal(0, *shape), "b": normal(9, 6), **statistics(2, 6, "a")}
    constants["as"] = np.abs(constants["as"]) + np.float32(0.1)
    model, (row,) = fused(image(body.replace("'", '"'), **constants))
    assert operators(model) == [layer.split("<")[0], "Max"]
    assert row.details == {"folded": ["y"]}
    constants["as"] = -constants["as"]
    assert "y" in refused(image(body, **constants))
