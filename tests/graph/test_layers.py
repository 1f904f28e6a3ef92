from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from onnxslim_tk.graph.edit import output_names
from onnxslim_tk.graph.layers import Layer, layer_of, layers
from onnxslim_tk.graph.model import Model
from onnxslim_tk.measure.observe import observed_shapes
from onnxslim_tk.measure.rows import input_rows
from onnxslim_tk.measure.runtime import Session
from tests.models import mlp, model_of, normal, opened, outputs, outputs_of, to_proto

HEAD = '<ir_version: 8, opset_import: ["": 17]>'


def graph(
    body: str, shape: str, rank: int = 2, constants: Mapping[str, Any] | None = None, **more: Any
) -> onnx.ModelProto:
    free = ", ".join("ABCDE"[:rank])
    text = f"{HEAD} g (float[{shape}] x) => (float[{free}] y) {{ {body} }}"
    return model_of(text, {**(constants or {}), **more})


def only(model: Model) -> Layer:
    (layer,) = layers(model)
    return layer


CASES: dict[str, tuple[str, tuple[int, ...], tuple[int, ...]]] = {
    "Conv": ("y = Conv<pads=[1,1,1,1], strides=[2,1]>(x, w)", (2, 6, 7, 8), (5, 6, 3, 3)),
    "grouped Conv": ("y = Conv<group=3>(x, w)", (2, 6, 7, 8), (9, 2, 3, 2)),
    "depthwise Conv": ("y = Conv<group=4, dilations=[2,2]>(x, w)", (1, 4, 9, 9), (8, 1, 3, 3)),
    "1-D Conv": ("y = Conv<pads=[2,0], strides=[3]>(x, w)", (2, 4, 19), (3, 4, 5)),
    "3-D Conv": ("y = Conv(x, w)", (1, 2, 4, 5, 6), (3, 2, 2, 3, 2)),
    "Gemm": ("y = Gemm(x, w)", (4, 6), (6, 5)),
    "Gemm with transB": ("y = Gemm<transB=1>(x, w)", (4, 6), (5, 6)),
    "MatMul": ("y = MatMul(x, w)", (4, 6), (6, 5)),
    "Conv with SAME_UPPER": ('y = Conv<auto_pad="SAME_UPPER">(x, w)', (2, 3, 7, 8), (4, 3, 2, 3)),
    "Conv with SAME_LOWER": (
        'y = Conv<auto_pad="SAME_LOWER", strides=[2,3]>(x, w)',
        (2, 3, 8, 8),
        (4, 3, 3, 2),
    ),
    "MatMul behind a Transpose": ("t = Transpose(w) y = MatMul(x, t)", (4, 6), (5, 6)),
    "MatMul of rank 3": ("y = MatMul(x, w)", (2, 3, 6), (6, 5)),
}


@pytest.mark.parametrize("name", CASES)
def test_rows_times_the_matrix_are_what_the_layer_computes(name: str) -> None:
    body, shape, size = CASES[name]
    x = normal(0, *shape)
    proto = graph(body, ", ".join(map(str, shape)), len(shape), w=normal(1, *size))
    layer = only(opened(proto))
    rows = input_rows(layer, x, 10**9, np.random.default_rng(0))
    found = np.einsum("gni,goi->gno", rows.astype(np.float64), layer.matrix())
    expected = outputs(proto, {"x": x})["y"]
    by_row = np.moveaxis(expected, 1, -1) if layer.kind == "Conv" else expected
    by_group = by_row.reshape(-1, layer.groups, layer.channels // layer.groups).swapaxes(0, 1)
    np.testing.assert_allclose(found, by_group, atol=1e-4)
    assert layer.macs({"y": expected.shape}) == found.size * rows.shape[2]


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_a_transposed_convolution_is_a_matrix_for_each_place_of_its_kernel(groups: int) -> None:
    w = normal(1, 4, 6 // (2 if groups > 1 else 1), 2, 3)
    x = normal(0, 2, 4, 3, 5)
    # Steps as wide as the kernel: every output is one row of the matrix.
    body = f"y = ConvTranspose<group={groups}, strides=[2,3]>(x, w)"
    proto = graph(body, "2, 4, 3, 5", 4, w=w)
    layer = only(opened(proto))
    rows = input_rows(layer, x, 10**9, np.random.default_rng(0))
    found = np.einsum("gni,goi->ngo", rows.astype(np.float64), layer.matrix())
    placed = found.reshape(2, 3, 5, layer.channels, 2, 3).transpose(0, 3, 1, 4, 2, 5)
    expected = outputs(proto, {"x": x})["y"]
    np.testing.assert_allclose(placed.reshape(expected.shape), expected, atol=1e-4)
    assert layer.macs({"x": x.shape}) == found.size * rows.shape[2]
    mean = layer.per_channel(layer.matrix() @ np.full(rows.shape[2], 1.0))
    ones = outputs(proto, {"x": np.ones_like(x)})["y"].mean(axis=(0, 2, 3))
    np.testing.assert_allclose(mean, ones, atol=1e-4)


@pytest.mark.parametrize("name", [*CASES, "ConvTranspose", "Gather"])
def test_from_matrix_undoes_to_matrix(name: str) -> None:
    if name == "Gather":
        text = f"{HEAD} g (int64[N] x) => (float[N, 16] y) {{ y = Gather(w, x) }}"
        layer = only(opened(model_of(text, {"w": normal(0, 80, 16)})))
        assert layer.input.name == "x"
        assert layer.macs({"y": (5, 16)}) == 0
    elif name == "ConvTranspose":
        body = "y = ConvTranspose<group=2>(x, w)"
        layer = only(opened(graph(body, "1, 4, 5, 5", 4, w=normal(0, 4, 3, 2, 3))))
        assert layer.channels == 6
    else:
        body, shape, size = CASES[name]
        text_shape = ", ".join(map(str, shape))
        layer = only(opened(graph(body, text_shape, len(shape), w=normal(0, *size))))
    matrix = layer.matrix()
    assert matrix.shape[0] == layer.groups
    np.testing.assert_array_equal(layer.from_matrix(matrix), layer.weight)
    assert matrix.size == layer.size == layer.weight.size


def test_counts_multiplications_as_one_does_by_hand() -> None:
    body = "c = Conv<group=2, strides=[2,2], pads=[1,1,1,1]>(x, w) f = Flatten(c) y = Gemm(f, v)"
    constants = {"w": normal(0, 8, 2, 3, 3), "v": normal(1, 8 * 16, 10)}
    model = opened(graph(body, "3, 4, 8, 8", 2, constants))
    shapes = observed_shapes(model, {"x": normal(2, 3, 4, 8, 8)})
    # 3 images, 8 channels on 4 by 4 places, each of 2 channels times 9 weights.
    assert [layer.macs(shapes) for layer in layers(model)] == [3 * 8 * 16 * 2 * 9, 3 * 128 * 10]
    assert [layer.macs({}) for layer in layers(model)] == [None, None]


Q = np.arange(-24, 24).reshape(6, 8).astype(np.int8)
PER_ROW = np.linspace(0.1, 0.6, 6).astype(np.float32)
PER_COLUMN = np.linspace(0.1, 0.8, 8).astype(np.float32)
SCALED: dict[str, tuple[str, dict[str, Any], int]] = {
    "per output channel": ("c = Cast<to=1>(q) w = Mul(c, s)", {"s": PER_COLUMN[None]}, 8),
    "the scale first": ("c = Cast<to=1>(q) w = Mul(s, c)", {"s": PER_COLUMN}, 8),
    "one scale": ("c = Cast<to=1>(q) w = Mul(c, s)", {"s": np.float32(0.5)}, 1),
    "DequantizeLinear": ("w = DequantizeLinear<axis=1>(q, s)", {"s": PER_COLUMN}, 8),
    "an axis from behind": ("w = DequantizeLinear<axis=-1>(q, s)", {"s": PER_COLUMN}, 8),
    "no axis": ("w = DequantizeLinear(q, s)", {"s": PER_COLUMN}, 8),
    "one for the tensor": ("w = DequantizeLinear(q, s)", {"s": np.float32(0.3)}, 1),
    "a zero point": (
        "w = DequantizeLinear(q, s, z)",
        {"s": PER_COLUMN, "z": np.arange(8).astype(np.int8)},
        8,
    ),
}


@pytest.mark.parametrize("name", SCALED)
def test_sees_the_weight_behind_a_scale(name: str) -> None:
    decode, constants, scales = SCALED[name]
    proto = graph(f"{decode} y = MatMul(x, w)", "6, 6", 2, constants, q=Q)
    layer = only(opened(proto))
    assert not layer.is_dense
    assert layer.stored.name == "q"
    assert layer.scale is not None
    assert layer.scale.size == scales
    # As the file says: optimized, onnxruntime rounds activations behind such a weight.
    session = Session(proto.SerializeToString(), optimize=False)
    seen = session.run({"x": np.eye(6, dtype=np.float32)})["y"]
    np.testing.assert_allclose(layer.weight, seen, rtol=1e-6)


@pytest.mark.parametrize(
    ("decode", "constants"),
    [
        ("c = Cast<to=1>(q) w = Mul(c, s)", {"s": PER_ROW[:, None]}),
        ("c = Cast<to=1>(q) w = Mul(c, s)", {"s": normal(0, 6, 8)}),
        ("w = DequantizeLinear<axis=0>(q, s)", {"s": PER_ROW}),
        ("c = Cast<to=11>(q) d = Mul(c, s) w = Cast<to=1>(d)", {"s": np.float64(0.5)}),
    ],
)
def test_scales_that_are_not_per_output_channel_are_left_alone(
    decode: str, constants: dict[str, NDArray[Any]]
) -> None:
    assert not list(layers(opened(graph(f"{decode} y = MatMul(x, w)", "6, 6", 2, constants, q=Q))))


@pytest.mark.parametrize(
    "body",
    [
        "y = Gemm<alpha=0.5>(x, w)",
        "y = Gemm<transA=1>(x, w)",
        "y = MatMul(w, x)",
        "v = Relu(x) y = MatMul(x, v)",
        'y = Einsum<equation="ab,bc->ac">(x, w)',
    ],
)
def test_what_is_no_plain_matrix_is_no_layer(body: str) -> None:
    assert not list(layers(opened(graph(body, "6, 6", w=normal(0, 6, 6)))))


def test_a_half_precision_weight_is_a_layer_but_none_to_cut() -> None:
    text = f"{HEAD} g (float16[N, 6] x) => (float16[N, 6] y) {{ y = MatMul(x, w) }}"
    proto = model_of(text, {"w": normal(0, 6, 6).astype(np.float16)})
    model = opened(proto)
    layer = only(model)
    assert layer.is_half
    assert layer.weight.dtype == np.float32
    assert layer_of(model, layer.node, model.graph, "") is None
    x = {"x": normal(1, 4, 6).astype(np.float16)}
    expected = outputs(proto, x)["y"]
    layer.set_dense(model, 2 * layer.weight)
    np.testing.assert_allclose(outputs_of(model, x)["y"], 2 * expected, rtol=1e-2)


@pytest.mark.parametrize(
    "body",
    [
        "y = Gemm(x, w)",
        "y = Gemm(x, w, b)",
        "y = MatMul(x, w)",
        "m = MatMul(x, w) y = Add(m, b)",
    ],
)
def test_a_half_precision_layer_gets_a_shift_of_its_type(body: str) -> None:
    text = f"{HEAD} g (float16[N, 6] x) => (float16[N, 5] y) {{ {body} }}"
    constants = {"w": normal(0, 6, 5), "b": normal(1, 5)}
    used = {name: v.astype(np.float16) for name, v in constants.items() if f", {name}" in body}
    proto, x = model_of(text, used), {"x": normal(2, 4, 6).astype(np.float16)}
    model = opened(proto)
    assert only(model).shift_bias(model, np.arange(5.0), output_names(model))
    moved = outputs_of(model, x)["y"].astype(np.float32) - outputs(proto, x)["y"]
    np.testing.assert_allclose(moved, np.tile(np.arange(5.0), (4, 1)), atol=0.02)


def test_custom_operators_are_no_layers() -> None:
    proto = graph("y = MatMul(x, w)", "6, 6", w=normal(0, 6, 6))
    proto.graph.node[0].domain = "vendor"
    assert not list(layers(opened(proto)))


def shifted(proto: onnx.ModelProto, x: NDArray[Any], channels: int) -> None:
    """A shift of the bias must be a shift of the output, channel by channel."""
    before = outputs(proto, {"x": x})["y"]
    model = opened(proto)
    (layer, *_) = layers(model)
    shift = np.arange(channels) + 1.0
    assert layer.channels == channels
    assert layer.shift_bias(model, shift, output_names(model))
    after = outputs_of(model, {"x": x})["y"]
    place = [1, channels] + [1] * (before.ndim - 2) if "Conv" in layer.kind else [-1]
    wide = np.broadcast_to(shift.reshape(place), before.shape)
    np.testing.assert_allclose(after - before, wide, atol=1e-4)
    assert [value.name for value in to_proto(model).graph.output] == ["y"]
    assert next(layers(model)).id == layer.id


@pytest.mark.parametrize("bias", ["", ", b"])
@pytest.mark.parametrize(
    ("op", "shape", "size", "channels"),
    [
        ("Conv<group=2>", (2, 4, 5, 5), (6, 2, 3, 3), 6),
        ("ConvTranspose<group=2>", (2, 4, 5, 5), (4, 3, 2, 2), 6),
        ("Gemm", (4, 6), (6, 5), 5),
        ("Gemm<transB=1>", (4, 6), (5, 6), 5),
    ],
)
def test_shifts_the_bias_that_a_layer_has_or_lacks(
    op: str, bias: str, shape: tuple[int, ...], size: tuple[int, ...], channels: int
) -> None:
    constants = {"w": normal(1, *size), "b": normal(2, channels)}
    if not bias:
        del constants["b"]
    text_shape = ", ".join(map(str, shape))
    proto = graph(f"y = {op}(x, w{bias})", text_shape, len(shape), constants)
    layer = only(opened(proto))
    found = layer.bias(set())
    assert (found is None) == (not bias)
    shifted(proto, normal(0, *shape), channels)


@pytest.mark.parametrize("bias", [normal(2, 1, 5), normal(2, 1), np.float32(3), normal(2, 5)])
def test_shifts_a_bias_of_any_shape_that_is_the_same_for_all_rows(bias: NDArray[Any]) -> None:
    proto = graph("y = Gemm(x, w, b)", "4, 6", w=normal(1, 6, 5), b=bias)
    shifted(proto, normal(0, 4, 6), 5)


@pytest.mark.parametrize("bias", [normal(2, 5, 1), normal(2, 5, 5)])
def test_a_bias_that_differs_from_row_to_row_has_no_place_for_a_shift(bias: NDArray[Any]) -> None:
    proto = graph("y = Gemm(x, w, b)", "5, 6", w=normal(1, 6, 5), b=bias)
    model = opened(proto)
    layer = only(model)
    assert layer.bias(set()) is None
    assert not layer.shift_bias(model, np.ones(5), {"y"})
    assert to_proto(model) == to_proto(opened(proto))


def test_a_bias_that_is_computed_stays() -> None:
    text = f"""{HEAD} g (float[2, 4, 5, 5] x, float[6] b) => (float[A, B, C, D] y) {{
        y = Conv(x, w, b)
    }}"""
    model = opened(model_of(text, {"w": normal(0, 6, 4, 3, 3)}))
    assert only(model).bias(set()) is None
    assert not only(model).shift_bias(model, np.ones(6), {"y"})


@pytest.mark.parametrize(
    ("body", "bias"),
    [
        ("y = MatMul(x, w)", None),
        ("m = MatMul(x, w) y = Add(m, b)", normal(2, 5)),
        ("m = MatMul(x, w) y = Add(b, m)", normal(2, 1, 1, 5)),
        ("m = MatMul(x, w) y = Add(m, b)", normal(2, 3, 5)),
        ("m = MatMul(x, w) y = Add(m, b)", np.float32(2)),
        ("m = MatMul(x, w) r = Relu(m) s = Add(m, b) y = Sub(s, r)", normal(2, 5)),
    ],
)
def test_shifts_the_output_of_a_matrix_product(body: str, bias: NDArray[Any] | None) -> None:
    constants = {"w": normal(1, 6, 5)} | ({} if bias is None else {"b": bias})
    proto = graph(body, "2, 3, 6", 3, constants)
    model = opened(proto)
    layer = only(model)
    found = layer.bias(output_names(model))
    sole = "Relu" not in body
    assert (found is not None) == (bias is not None and bias.size == 5 and sole)
    if sole:
        shifted(proto, normal(0, 2, 3, 6), 5)
    else:
        # What both readers get moves; Relu of it does not move by the same.
        assert layer.shift_bias(model, np.ones(5), output_names(model))
        assert [n.op for n in model.graph.nodes].count("Add") == 2


def test_an_output_between_product_and_bias_keeps_them_apart() -> None:
    text = f"""{HEAD} g (float[N, 6] x) => (float[N, 5] m, float[N, 5] y) {{
        m = MatMul(x, w)
        y = Add(m, b)
    }}"""
    model = opened(model_of(text, {"w": normal(0, 6, 5), "b": normal(1, 5)}))
    assert only(model).bias(output_names(model)) is None


def test_knows_a_weight_that_another_node_reads() -> None:
    body = "a = MatMul(x, w) b = MatMul(a, v) c = MatMul(b, v) d = Mul(w, w) y = MatMul(c, u)"
    weights = {name: normal(k, 6, 6) for k, name in enumerate("wvu")}
    model = opened(graph(body, "6, 6", 2, weights))
    shared = [layer.is_shared for layer in layers(model)]
    assert shared == [True, True, True, False]


def test_knows_a_decode_that_two_layers_read() -> None:
    body = "c = Cast<to=1>(q) w = Mul(c, s) a = MatMul(x, w) y = MatMul(a, w)"
    model = opened(graph(body, "8, 8", q=np.ones((8, 8), np.int8), s=PER_COLUMN))
    assert [layer.is_shared for layer in layers(model)] == [True, True]


def test_knows_a_weight_that_a_body_reads_too() -> None:
    text = f"""{HEAD}
    g (bool c, float[4, 4] x) => (float[4, 4] y) {{
        m = MatMul(x, w)
        y = If(c)<
            then_branch = yes () => (float[4, 4] p) {{ p = MatMul(m, w) }},
            else_branch = no () => (float[4, 4] q) {{ q = MatMul(m, v) }}
        >
    }}"""
    model = opened(model_of(text, {"w": normal(0, 4, 4), "v": normal(1, 4, 4)}))
    found = {layer.id: layer.is_shared for layer in layers(model)}
    assert found == {"m": True, "y/then_branch/p": True, "y/else_branch/q": False}
    assert [layer.macs({"m": (4, 4), "p": (4, 4)}) for layer in layers(model)] == [64, None, None]


def test_writes_weights_that_are_read_back_alike() -> None:
    for setter in ("dense", "scaled"):
        model = opened(mlp())
        for layer in list(layers(model)):
            scale = np.linspace(0.01, 0.02, layer.channels).astype(np.float32)
            values = np.rint(layer.weight * 100).astype(np.int8)
            shape = [1, 1]
            shape[layer.channel_axis] = -1
            dense = values.astype(np.float32) * scale.reshape(shape)
            if setter == "dense":
                layer.set_dense(model, dense)
            else:
                layer.set_scaled(model, values, scale)
            again = next(found for found in layers(model) if found.id == layer.id)
            assert again.is_dense == (setter == "dense")
            np.testing.assert_array_equal(again.weight, dense)
        assert outputs_of(model, {"x": normal(0, 3, 32)})["y"].shape == (3, 8)


def test_a_weight_behind_a_transpose_is_written_as_it_lies() -> None:
    proto = graph("t = Transpose<perm=[1,0]>(w) y = MatMul(x, t)", "N, 6", w=normal(0, 5, 6))
    x = {"x": normal(1, 4, 6)}
    for setter in ("dense", "scaled"):
        model = opened(proto)
        layer = only(model)
        assert (layer.transposed, layer.channels, layer.is_multiplied) == (True, 5, False)
        assert layer_of(model, layer.node, model.graph, "") is None
        if setter == "dense":
            layer.set_dense(model, 2 * layer.weight)
            np.testing.assert_allclose(
                outputs_of(model, x)["y"], 2 * outputs(proto, x)["y"], rtol=1e-5
            )
        else:
            layer.set_scaled(model, np.ones((5, 6)), np.arange(1.0, 6.0))
            expected = x["x"].sum(1)[:, None] * np.arange(1, 6)
            np.testing.assert_allclose(outputs_of(model, x)["y"], expected, rtol=1e-5)
            assert only(model).is_multiplied
        assert only(model).id == "y"


def test_a_new_weight_leaves_other_readers_the_old_one() -> None:
    body = "a = MatMul(x, w) y = MatMul(a, w)"
    model = opened(graph(body, "6, 6", w=normal(0, 6, 6)))
    first, second = layers(model)
    before = second.weight.copy()
    first.set_dense(model, np.zeros((6, 6)))
    first, second = layers(model)
    assert not first.weight.any()
    np.testing.assert_array_equal(second.weight, before)
