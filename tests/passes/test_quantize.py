from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from onnxslim_tk.errors import RecipeError
from onnxslim_tk.graph.edit import drop_unused
from onnxslim_tk.graph.layers import layers
from onnxslim_tk.graph.model import Model, to_proto
from onnxslim_tk.kernels.ranges import METHODS
from onnxslim_tk.measure.observe import observe
from onnxslim_tk.measure.runtime import Session, running_operators
from onnxslim_tk.measure.validate import INTEGER_KERNELS
from onnxslim_tk.packing import pack
from onnxslim_tk.passes.quantize import Quantize
from onnxslim_tk.plan.policy import asked_for
from onnxslim_tk.plan.proposal import Context, Proposal, Refusal
from tests.models import (
    CONTEXT,
    SLOW_FLOATS,
    chain_cnn,
    depthwise_cnn,
    digest,
    mlp,
    model_of,
    normal,
    opened,
    opset_of,
    outputs,
    outputs_of,
    residual_cnn,
    with_metadata,
)

HEAD = '<ir_version: 8, opset_import: ["": 17]>'
EXPECTED = Quantize(bias_correction="expected")
Feeds = Sequence[Mapping[str, NDArray[Any]]]


def graph(body: str, shape: str, rank: int, constants: Mapping[str, Any]) -> onnx.ModelProto:
    free = ", ".join("ABCDE"[:rank])
    return model_of(f"{HEAD} g (float[{shape}] x) => (float[{free}] y) {{ {body} }}", constants)


def feeds_of(*shape: int, count: int = 6) -> list[dict[str, NDArray[Any]]]:
    return [{"x": normal(100 + k, *shape)} for k in range(count)]


def context_of(model: Model, feeds: Feeds, **more: Any) -> Context:
    if not feeds:
        return Context(SLOW_FLOATS, **more)
    found = observe(model, feeds, frozenset({"mean", "range"}), 0)
    return Context(SLOW_FLOATS, statistics=found, feeds=feeds, shapes=found.shapes, **more)


def rows_of(model: Model, context: Context, method: Quantize) -> list[Proposal]:
    return [row for row in method.propose(model, context) if isinstance(row, Proposal)]


def refusals_of(model: Model, context: Context, method: Quantize = EXPECTED) -> dict[str, str]:
    rows = method.propose(model, context)
    return {row.target: row.reason for row in rows if isinstance(row, Refusal)}


def quantized(
    proto: onnx.ModelProto, feeds: Feeds, method: Quantize = EXPECTED, **more: Any
) -> Model:
    """``proto`` with the first setting of every layer carried out."""
    model = opened(onnx.ModelProto.FromString(proto.SerializeToString()))
    context = context_of(model, feeds, **more)
    first: dict[tuple[str, ...], Proposal] = {}
    for row in rows_of(model, context, method):
        first.setdefault(row.targets, row)
    method.apply(model, list(first.values()), context)
    return model


def running(model: Model) -> dict[str, int]:
    """Operators that onnxruntime really runs, layout changes left aside."""
    found = running_operators(to_proto(model).SerializeToString())
    return {name: n for name, n in found.items() if not name.startswith(("Transpose", "Reorder"))}


def sqnr(reference: NDArray[Any], value: NDArray[Any]) -> float:
    noise = np.square(reference.astype(np.float64) - value).sum()
    return float(10 * np.log10(np.square(reference.astype(np.float64)).sum() / max(noise, 1e-30)))


def near(proto: onnx.ModelProto, model: Model, feed: Mapping[str, Any], least: float) -> None:
    """Same names and shapes, and outputs within ``least`` dB, whether optimized or not."""
    expected = outputs(proto, feed)
    found = outputs_of(model, feed)
    plain = Session(to_proto(model).SerializeToString(), optimize=False).run(feed)
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert found[name].shape == value.shape
        assert sqnr(value, found[name]) > least
        assert sqnr(value, plain[name]) > least


CONV = {
    "w": normal(0, 16, 4, 3, 3, scale=0.2),
    "v": normal(1, 8, 16, 1, 1, scale=0.3),
    "b": normal(2, 16, scale=0.5),
}
IMAGE = "1, 4, 9, 9"
CASES: dict[str, tuple[str, Mapping[str, Any], dict[str, int]]] = {
    "Relu": ("c = Conv(x, w, b) r = Relu(c) y = Conv(r, v)", {}, {"QLinearConv": 2}),
    "Clip from 0": (
        "c = Conv(x, w, b) r = Clip(c, low, high) y = Conv(r, v)",
        {"low": np.float32(0), "high": np.float32(1.5)},
        {"QLinearConv": 2},
    ),
    "Clip from below 0": (
        "c = Conv(x, w, b) r = Clip(c, low, high) y = Conv(r, v)",
        {"low": np.float32(-1), "high": np.float32(1)},
        {"QLinearConv": 2},
    ),
    "a Relu that is not the only reader": (
        "c = Conv(x, w, b) r = Relu(c) s = Add(c, r) y = Conv(s, v)",
        {},
        {"QLinearConv": 2, "QLinearAdd": 1, "QuantizeLinear": 2, "DequantizeLinear": 2},
    ),
    "grouped": (
        "c = Conv<group=2>(x, u) y = Conv(c, v)",
        {"u": normal(3, 16, 2, 3, 3)},
        {"QLinearConv": 2},
    ),
    "Concat": (
        "c = Conv(x, w, b) r = Relu(c) d = Conv(x, u) k = Concat<axis=1>(r, d) y = Conv(k, z)",
        {"u": normal(3, 16, 4, 3, 3), "z": normal(4, 8, 32, 1, 1)},
        {"QLinearConv": 3, "QLinearConcat": 1},
    ),
    "MaxPool": (
        "c = Conv(x, w, b) r = Relu(c) p = MaxPool<kernel_shape=[2,2]>(r) y = Conv(p, v)",
        {},
        {"QLinearConv": 2, "NhwcMaxPool": 1},
    ),
    "AveragePool and nearest Resize": (
        "c = Conv(x, w) p = AveragePool<kernel_shape=[2,2]>(c) "
        'z = Resize<mode="nearest">(p, , s) y = Conv(z, v)',
        {"s": np.array([1, 1, 2, 2], np.float32)},
        {"QLinearConv": 2, "QLinearAveragePool": 1, "Resize": 1},
    ),
    "linear Resize": (
        'c = Conv(x, w) z = Resize<mode="linear">(c, , s) y = Conv(z, v)',
        {"s": np.array([1, 1, 2, 2], np.float32)},
        {"QLinearConv": 2, "Resize": 1, "QuantizeLinear": 2, "DequantizeLinear": 2},
    ),
    "SiLU": (
        "c = Conv(x, w, b) k = Sigmoid(c) s = Mul(c, k) y = Conv(s, v)",
        {},
        {"QLinearConv": 2, "QLinearSigmoid": 1, "QLinearMul": 1},
    ),
    "HardSwish": (
        "c = Conv(x, w, b) h = HardSwish(c) y = Conv(h, v)",
        {},
        {"QLinearConv": 2, "QLinearMul": 1, "Clip": 1},
    ),
    "a gate of two nodes": (
        "c = Conv(x, w, b) s = HardSigmoid<alpha=0.166666, beta=0.5>(c) m = Mul(c, s) "
        "y = Conv(m, v)",
        {},
        {"QLinearConv": 2, "QLinearMul": 1, "Clip": 1},
    ),
    "squeeze and excitation by a HardSigmoid": (
        "c = Conv(x, w) r = Relu(c) p = GlobalAveragePool(r) d = Conv(p, u) e = Relu(d) "
        "f = Conv(e, t) s = HardSigmoid(f) m = Mul(r, s) y = Conv(m, v)",
        {"u": normal(3, 8, 16, 1, 1), "t": normal(4, 16, 8, 1, 1)},
        {"QLinearConv": 4, "QLinearGlobalAveragePool": 1, "QLinearMul": 1},
    ),
    "numbers behind a HardSwish": (
        "c = Conv(x, w, b) h = HardSwish(c) m = Mul(f, h) a = Add(m, g) "
        "y = Conv<pads=[1,1,1,1]>(a, z)",
        {"f": np.float32(0.6), "g": np.float32(-0.4), "z": normal(4, 8, 16, 3, 3)},
        {"QLinearConv": 2, "QLinearMul": 1, "Clip": 1},
    ),
    "numbers behind an Add": (
        "c = Conv(x, w, b) d = Conv(x, u) s = Add(c, d) m = Div(s, f) a = Sub(m, g) y = Conv(a, v)",
        {"f": np.float32(3), "g": np.float32(0.7), "u": normal(3, 16, 4, 3, 3)},
        {"QLinearConv": 3, "QLinearAdd": 1},
    ),
    "a floor of its own for every channel": (
        "c = Conv(x, w, b) m = Max(c, k) p = MaxPool<kernel_shape=[2,2]>(m) y = Conv(p, v)",
        {"k": normal(3, 1, 16, 1, 1)},
        {"QLinearConv": 2, "QLinearAdd": 1, "NhwcMaxPool": 1},
    ),
    "a floor of its own for every column": (
        "c = Conv(x, w, b) m = Max(c, k) y = Conv(m, v)",
        {"k": normal(3, 1, 1, 1, 7)},
        {"QLinearConv": 2, "Max": 1, "QuantizeLinear": 2, "DequantizeLinear": 2},
    ),
    "Pad": (
        "c = Conv(x, w, b) h = Sub(c, g) p = Pad(h, s) y = Conv(p, v)",
        {"s": np.array([0, 0, 2, 5, 0, 0, 1, 0], np.int64), "g": np.float32(0.3)},
        {"QLinearConv": 2, "Pad": 1},
    ),
    "squeeze and excitation": (
        "c = Conv(x, w) r = Relu(c) p = GlobalAveragePool(r) d = Conv(p, u) e = Relu(d) "
        "f = Conv(e, t) s = Sigmoid(f) m = Mul(r, s) y = Conv(m, v)",
        {"u": normal(3, 8, 16, 1, 1), "t": normal(4, 16, 8, 1, 1)},
        {"QLinearConv": 4, "QLinearGlobalAveragePool": 1, "QLinearSigmoid": 1, "QLinearMul": 1},
    ),
    "a bridge in float": (
        "c = Conv(x, w, b) k = PRelu(c, s) y = Conv(k, v)",
        {"s": normal(3, 16, 1, 1)},
        {"QLinearConv": 2, "PRelu": 1, "QuantizeLinear": 2, "DequantizeLinear": 2},
    ),
    "an Add that nothing in integers reads": (
        "c = Conv(x, w, b) d = Conv(x, u) y = Add(c, d)",
        {"u": normal(3, 16, 4, 3, 3)},
        {"QLinearConv": 2, "Add": 1, "DequantizeLinear": 2},
    ),
    "a tensor that integers and floats read": (
        "c = Conv(x, w, b) r = Relu(c) d = Conv(r, v) e = ReduceMean(r) y = Add(d, e)",
        {},
        {"QLinearConv": 2, "ReduceMean": 1, "Add": 1, "DequantizeLinear": 2},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_convolutions_run_in_integers_with_what_lies_between_them(name: str) -> None:
    body, more, operators = CASES[name]
    used = {key: value for key, value in CONV.items() if f"{key}," in body or f"{key})" in body}
    proto = graph(body, IMAGE, 4, used | dict(more))
    feeds = feeds_of(1, 4, 9, 9)
    model = quantized(proto, feeds)
    near(proto, model, feeds[0], 25)
    edges = {"QuantizeLinear": 1, "DequantizeLinear": 1}
    assert running(model) == edges | operators


@pytest.mark.parametrize("dims", [1, 3])
def test_convolutions_of_other_dimensions_run_in_integers(dims: int) -> None:
    sides = [7] * dims
    constants = {"w": normal(0, 16, 4, *[3] * dims), "v": normal(1, 8, 16, *[1] * dims)}
    body = "c = Conv(x, w) r = Relu(c) y = Conv(r, v)"
    proto = graph(body, ", ".join(map(str, (1, 4, *sides))), 2 + dims, constants)
    feeds = feeds_of(1, 4, *sides)
    model = quantized(proto, feeds)
    near(proto, model, feeds[0], 25)
    assert running(model)["QLinearConv"] == 2


def test_a_residual_network_runs_in_integers_from_end_to_end() -> None:
    feeds = feeds_of(1, 3, 16, 16)
    model = quantized(residual_cnn(), feeds)
    near(residual_cnn(), model, feeds[0], 30)
    # Three input channels have no fast kernel, four have.
    assert running(model) == {
        "QuantizeLinear": 1,
        "Pad": 1,
        "QLinearConv": 5,
        "QLinearAdd": 2,
        "QLinearGlobalAveragePool": 1,
        "Flatten": 1,
        "QGemm": 1,
    }


@pytest.mark.parametrize(("size", "pads"), [(24, 1), (5, 0)])
def test_odd_input_channels_are_filled_up_where_that_pays(size: int, pads: int) -> None:
    body = "c = Conv<pads=[1,1,1,1]>(x, w, b) r = Relu(c) y = Conv(r, v)"
    constants = CONV | {"w": normal(0, 16, 5, 3, 3, scale=0.2)}
    proto = graph(body, f"1, 5, {size}, {size}", 4, constants)
    feeds = feeds_of(1, 5, size, size)
    model = quantized(proto, feeds)
    near(proto, model, feeds[0], 25)
    assert running(model).get("Pad", 0) == pads


@pytest.mark.parametrize("method", [EXPECTED, Quantize()])
def test_depthwise_convolutions_get_channels_for_their_fast_kernel(method: Quantize) -> None:
    body = "c = Conv<pads=[2,2,2,2], group=40>(x, w, b) h = HardSwish(c) y = Conv(h, v)"
    constants = {
        "w": normal(0, 40, 1, 5, 5, scale=0.25),
        "b": normal(1, 40),
        "v": normal(2, 8, 40, 1, 1, scale=0.2),
    }
    proto = graph(body, "1, 40, 12, 12", 4, constants)
    feeds = feeds_of(1, 40, 12, 12)
    model = quantized(proto, feeds, method)
    near(proto, model, feeds[0], 25)
    (widened,) = (layer for layer in layers(model) if layer.groups > 1)
    assert (widened.groups, widened.channels) == (48, 48)
    assert {"Pad": 1, "Slice": 1, "QLinearConv": 2}.items() <= running(model).items()


def test_a_depthwise_network_absorbs_its_clips() -> None:
    feeds = feeds_of(1, 3, 16, 16)
    model = quantized(depthwise_cnn(), feeds)
    near(depthwise_cnn(), model, feeds[0], 25)
    found = running(model)
    assert (found["QLinearConv"], found["QuantizeLinear"], found.get("Clip", 0)) == (3, 1, 0)


def test_pooling_and_flattening_on_the_way_to_a_gemm_stay_in_integers() -> None:
    body = (
        "c = Conv(x, w, b) r = Relu(c) p = MaxPool<kernel_shape=[7,7]>(r) f = Flatten(p) "
        "s = Reshape(f, shape) y = Gemm(s, u)"
    )
    constants = {"w": CONV["w"], "b": CONV["b"], "u": normal(3, 16, 8), "shape": np.array([1, 16])}
    feeds = feeds_of(1, 4, 9, 9)
    model = quantized(graph(body, IMAGE, 2, constants), feeds)
    near(graph(body, IMAGE, 2, constants), model, feeds[0], 25)
    found = running(model)
    assert (found["QuantizeLinear"], found["QLinearConv"], found["QGemm"]) == (1, 1, 1)
    assert "DequantizeLinear" not in found


PRODUCTS: dict[str, tuple[str, tuple[int, ...], int, Mapping[str, Any], dict[str, int]]] = {
    "MatMul": ("y = MatMul(x, w)", (8, 32), 2, {}, {"QGemm": 1}),
    "with a bias": ("m = MatMul(x, w) y = Add(m, b)", (8, 32), 2, {"b": 48}, {"QGemm": 1}),
    "the bias first": ("m = MatMul(x, w) y = Add(b, m)", (8, 32), 2, {"b": (1, 48)}, {"QGemm": 1}),
    "a bias that raises the rank": (
        "m = MatMul(x, w) y = Add(m, b)",
        (8, 32),
        3,
        {"b": (1, 1, 48)},
        {"MatMulIntegerToFloat": 1, "Add": 1},
    ),
    "rank 3": (
        "m = MatMul(x, w) y = Add(m, b)",
        (2, 8, 32),
        3,
        {"b": 48},
        {"MatMulIntegerToFloat": 1, "Add": 1},
    ),
    "rank 4": (
        "m = MatMul(x, w) y = Add(m, b)",
        (2, 2, 8, 32),
        4,
        {"b": (1, 48)},
        {"MatMulIntegerToFloat": 1, "Add": 1},
    ),
    "Gemm": ("y = Gemm(x, w, b)", (8, 32), 2, {"b": 48}, {"QGemm": 1}),
    "Gemm without bias": ("y = Gemm(x, w)", (8, 32), 2, {}, {"QGemm": 1}),
    "Gemm with one number": ("y = Gemm(x, w, b)", (8, 32), 2, {"b": ()}, {"QGemm": 1}),
    "Gemm with a bias for each row": (
        "y = Gemm(x, w, b)",
        (48, 32),
        2,
        {"b": (48, 1)},
        {"Gemm": 1},
    ),
    "Gemm with a full bias": ("y = Gemm(x, w, b)", (8, 32), 2, {"b": (8, 48)}, {"Gemm": 1}),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_matrix_products_of_fixed_shapes_run_in_integers(name: str) -> None:
    body, shape, rank, bias, operators = PRODUCTS[name]
    constants: dict[str, Any] = {"w": normal(0, 32, 48)}
    for key, size in bias.items():
        dims = (size,) if isinstance(size, int) else size
        constants[key] = np.asarray(normal(1, *dims), np.float32)
    proto = graph(body, ", ".join(map(str, shape)), rank, constants)
    model = quantized(proto, feeds_of(*shape))
    near(proto, model, feeds_of(*shape)[0], 30)
    floats = "Gemm" in operators
    assert running(model) == ({} if floats else {"QuantizeLinear": 1}) | operators


def test_products_of_an_open_batch_and_chains_of_them() -> None:
    model = quantized(mlp(), feeds_of(4, 32))
    near(mlp(), model, {"x": normal(7, 9, 32)}, 30)
    assert running(model) == {"QuantizeLinear": 1, "QGemm": 3}


def test_embeddings_are_gathered_as_int8_rows() -> None:
    text = f"""{HEAD} g (int64[N, T] x) => (float[N, T, 16] y) {{ y = Gather(t, x) }}"""
    proto = model_of(text, {"t": normal(0, 200, 16)})
    feed = {"x": np.array([[1, 199, -3], [0, 5, 6]])}
    model = quantized(proto, [])
    near(proto, model, feed, 35)
    assert running(model) == {"Gather": 2, "Cast": 1, "Mul": 1}
    assert to_proto(model).ByteSize() < proto.ByteSize() / 2
    assert model.origins[model.graph.nodes[0].outputs[0].name] == ("y",)


def test_outputs_keep_their_names_wherever_they_come_from() -> None:
    text = f"""{HEAD}
    g (float[1, 4, 9, 9] x) => (float[1, 16, 7, 7] c, float[1, 16, 7, 7] r, float[1, 8, 7, 7] y) {{
        c = Conv(x, w, b)
        r = Relu(c)
        y = Conv(r, v)
    }}"""
    proto = with_metadata(model_of(text, CONV))
    feeds = feeds_of(1, 4, 9, 9)
    model = quantized(proto, feeds)
    near(proto, model, feeds[0], 25)
    assert [value.name for value in to_proto(model).graph.output] == ["c", "r", "y"]
    assert [layer.id for layer in layers(model)] == ["c", "y"]
    notes = {node.op_type: node.doc_string for node in to_proto(model).graph.node}
    assert (notes["Conv"], notes["DequantizeLinear"]) == ("makes y", "")


def test_an_output_that_is_made_in_integers_and_read_further() -> None:
    text = f"""{HEAD} g (float[1, 4, 9, 9] x) => (float[1, 16, 7, 7] r, float[1, 8, 7, 7] y) {{
        c = Conv(x, w, b)
        r = Relu(c)
        y = Conv(r, v)
    }}"""
    proto = model_of(text, CONV)
    feeds = feeds_of(1, 4, 9, 9)
    model = quantized(proto, feeds)
    near(proto, model, feeds[0], 25)
    assert running(model)["QLinearConv"] == 2
    assert "Relu" not in running(model)


def test_an_older_model_is_raised_and_an_outdated_one_left() -> None:
    text = """<ir_version: 6, opset_import: ["": 11]>
    g (float[1, 4, 9, 9] x) => (float[1, 8, 7, 7] y) {
        c = Conv(x, w, b)
        r = Relu(c)
        y = Conv(r, v)
    }"""
    proto = model_of(text, CONV)
    feeds = feeds_of(1, 4, 9, 9)
    model = quantized(proto, feeds)
    near(proto, model, feeds[0], 25)
    assert opset_of(model) == 13
    assert running(model)["QLinearConv"] == 2
    for entry in proto.opset_import:
        entry.version = 6
    old = opened(proto)
    before = digest(old)
    assert set(refusals_of(old, Context(SLOW_FLOATS))) == {"c", "y"}
    assert "below 7 are not supported" in refusals_of(old, Context(SLOW_FLOATS))["c"]
    assert digest(old) == before


def dense_of(model: Model) -> dict[str, NDArray[Any]]:
    return {layer.id: layer.weight for layer in layers(model)}


def test_weights_alone_are_those_of_the_grid_and_run_in_float() -> None:
    method = Quantize(activations=False, bias_correction="none")
    proto = residual_cnn()
    feeds = feeds_of(1, 3, 16, 16)
    model = quantized(proto, feeds, method)
    assert "QuantizeLinear" not in running(model)
    plain = opened(residual_cnn())
    for layer in layers(plain):
        found = dense_of(model)[layer.id]
        by_channel = np.moveaxis(found - layer.weight, layer.channel_axis, 0)
        steps = np.abs(
            np.moveaxis(layer.weight, layer.channel_axis, 0).reshape(len(by_channel), -1)
        )
        assert (np.abs(by_channel.reshape(len(by_channel), -1)).mean(1) < steps.max(1) / 254).all()
        layer.set_dense(plain, found)
    expected = outputs_of(plain, feeds[0])["y"]
    np.testing.assert_allclose(outputs_of(model, feeds[0])["y"], expected, rtol=1e-5, atol=1e-5)


def test_without_samples_there_are_weights_alone() -> None:
    model = opened(chain_cnn())
    rows = rows_of(model, Context(SLOW_FLOATS), EXPECTED)
    assert {row.setting for row in rows} == {"float"}
    integer = Proposal(("c1",), "quantize", "integer")
    with pytest.raises(RecipeError, match="'c1' cannot run in integers without samples"):
        EXPECTED.apply(model, [integer], Context(SLOW_FLOATS))


def test_a_big_bias_over_tiny_weights_stays_within_its_bits() -> None:
    constants = CONV | {"w": CONV["w"] * np.float32(1e-8), "b": CONV["b"] * 1000}
    body = "c = Conv(x, w, b) y = Conv(c, v)"
    proto = graph(body, IMAGE, 4, constants)
    feeds = feeds_of(1, 4, 9, 9)
    model = quantized(proto, feeds)
    near(proto, model, feeds[0], 30)
    codes = [t for t in to_proto(model).graph.initializer if t.data_type == onnx.TensorProto.INT32]
    most = max(int(np.abs(onnx.numpy_helper.to_array(t)).max()) for t in codes)
    assert 2**29 < most < 2**30 * 1.001


def test_dead_channels_of_denormal_weights_do_no_harm() -> None:
    weight = CONV["w"].copy()
    weight[3], weight[4], weight[5] = 0, 1e-41, 1e-37
    constants = {**CONV, "w": weight, "b": np.zeros(16, np.float32)}
    proto = graph("c = Conv(x, w, b) y = Conv(c, v)", IMAGE, 4, constants)
    feeds = [{"x": feed["x"] * np.float32(1e-6)} for feed in feeds_of(1, 4, 9, 9)]
    model = quantized(proto, feeds)
    near(proto, model, feeds[0], 25)


def test_what_cannot_run_in_integers_is_left_in_float() -> None:
    text = f"""{HEAD} g (float[1, 4, 9, 9] x, float[16] b) => (float[1, 16, 8, 8] y) {{
        c = Conv(x, w, b)
        t = ConvTranspose(c, u)
        l = Log(t)
        r = Relu(l)
        y = Conv(r, v)
    }}"""
    constants = {"w": CONV["w"], "u": normal(3, 16, 16, 2, 2), "v": normal(4, 16, 16, 1, 1)}
    proto = model_of(text, constants)
    feeds = [{"x": normal(k, 1, 4, 9, 9), "b": normal(k, 16)} for k in range(3)]
    model = opened(proto)
    rows = rows_of(model, context_of(model, feeds), EXPECTED)
    # A bias that is computed; an operator that has no integer kernel; an input that is not finite.
    assert [(row.targets, row.setting) for row in rows] == [((k,), "float") for k in "cty"]
    found = quantized(proto, feeds)
    assert outputs_of(found, feeds[0])["y"].shape == (1, 16, 8, 8)


def test_an_output_that_is_not_finite_has_no_grid() -> None:
    constants = CONV | {"b": np.full(16, np.inf, np.float32)}
    proto = graph("c = Conv(x, w, b) y = Conv(c, v)", IMAGE, 4, constants)
    model = opened(proto)
    rows = rows_of(model, context_of(model, feeds_of(1, 4, 9, 9)), EXPECTED)
    assert {row.setting for row in rows} == {"float"}


REASONS: dict[str, tuple[dict[str, Any], str]] = {
    "fewer than 64 weights": ({"w": normal(0, 7, 7)}, "y = MatMul(x, w)"),
    "the weight is shared with another node": (
        {"w": normal(0, 16, 16)},
        "n = Neg(w) m = MatMul(x, w) y = MatMul(m, n)",
    ),
    "the weight holds values that are not finite": (
        {"w": np.where(normal(0, 16, 16) > 2, np.inf, 1).astype(np.float32)},
        "y = MatMul(x, w)",
    ),
    "quantized already": (
        {"q": np.arange(256).reshape(16, 16).astype(np.uint8), "s": np.float32(0.1)},
        "w = DequantizeLinear(q, s) y = MatMul(x, w)",
    ),
    "quantized already, with a zero point": (
        {
            "q": np.ones((16, 16), np.int8),
            "s": np.float32(0.1),
            "z": np.int8(3),
            "i": np.array([[0]]),
        },
        "w = DequantizeLinear(q, s, z) k = Gather(w, i) y = Add(x, k)",
    ),
    "int8 would not make it smaller": ({"w": np.ones((16, 16), np.float32)}, "y = MatMul(x, w)"),
}


@pytest.mark.parametrize("reason", REASONS)
def test_says_why_a_layer_is_left_alone(reason: str) -> None:
    constants, body = REASONS[reason]
    if "Gather" in body:
        constants = constants | {"q": np.ones((64, 16), np.int8)}
    proto = graph(body, "A, B", 3 if "Gather" in body else 2, constants)
    found = refusals_of(opened(proto), Context(SLOW_FLOATS), Quantize(activations=False))
    assert set(found.values()) == {reason}


@pytest.mark.parametrize("activations", [True, False])
def test_what_is_quantized_is_not_quantized_again(activations: bool) -> None:
    method = Quantize(activations=activations, bias_correction="none")
    feeds = feeds_of(1, 3, 16, 16)
    model = quantized(chain_cnn(), feeds if activations else [], method)
    again = context_of(model, feeds) if activations else Context(SLOW_FLOATS)
    assert not rows_of(model, again, method)
    assert refusals_of(model, again, method) == dict.fromkeys(
        ["c1", "c2", "y"], "quantized already"
    )


@pytest.mark.parametrize("bits", [7, 8])
def test_values_on_a_grid_already_are_kept_to_the_bit(bits: int) -> None:
    feeds = feeds_of(1, 3, 16, 16)
    model = opened(residual_cnn())
    kept: dict[str, tuple[Any, Any]] = {}
    for layer in list(layers(model)):
        scale = np.linspace(0.001, 0.002, layer.channels).astype(np.float32)
        values = np.clip(np.rint(layer.weight * 150), -90, 90).astype(np.int8)
        layer.set_scaled(model, values, scale)
        kept[layer.id] = values, scale
    context = context_of(model, feeds)
    method = Quantize(weight_bits=bits, bias_correction="expected")
    rows = [row for row in rows_of(model, context, method) if row.setting == "integer"]
    assert len(rows) == 6
    assert all(row.bytes_saved < 0 for row in rows)
    method.apply(model, rows, context)
    assert {"QLinearConv", "QGemm"} <= set(running(model))
    for layer in layers(model):
        values, scale = kept[layer.id]
        found = layer.stored.values
        np.testing.assert_array_equal(found[:, : values.shape[1]], values)
        assert not found[:, values.shape[1] :].any()
        np.testing.assert_array_equal(layer.scale, scale)


def test_seven_bits_stay_within_seven_bits() -> None:
    method = Quantize(weight_bits=7, bias_correction="expected")
    model = quantized(residual_cnn(), feeds_of(1, 3, 16, 16), method)
    near(residual_cnn(), model, feeds_of(1, 3, 16, 16)[0], 25)
    assert all(np.abs(layer.stored.values).max() <= 63 for layer in layers(model))


@pytest.mark.parametrize("activations", [True, False])
def test_bias_correction_brings_means_closer(activations: bool) -> None:
    # Inputs far from zero and few bits: a rounded weight shifts the mean of its output.
    body = "c = Conv(x, w) r = Relu(c) y = Conv(r, v)"
    proto = graph(body, IMAGE, 4, {"w": CONV["w"], "v": CONV["v"]})
    feeds = [{"x": 5 + normal(k, 1, 4, 9, 9)} for k in range(6)]
    distance = {}
    for correction in ("none", "expected"):
        method = Quantize(activations, weight_bits=7, bias_correction=correction)
        model = quantized(proto, feeds, method)
        shift = [outputs_of(model, f)["y"] - outputs(proto, f)["y"] for f in feeds]
        distance[correction] = float(np.abs(np.mean(shift, axis=(0, 1, 3, 4))).mean())
    assert distance["expected"] < distance["none"] / 2


def test_bias_correction_leaves_matrix_products_without_bias_in_integers() -> None:
    weights = {"w": normal(0, 32, 48), "v": normal(1, 48, 16)}
    proto = graph("m = MatMul(x, w) r = Relu(m) y = MatMul(r, v)", "8, 32", 2, weights)
    for correction in ("none", "expected", "measured"):
        model = quantized(proto, feeds_of(8, 32), Quantize(bias_correction=correction))
        near(proto, model, feeds_of(8, 32)[0], 30)
        found = running(model)
        assert sum(found.get(kernel, 0) for kernel in INTEGER_KERNELS) == 2


def test_same_inputs_give_the_same_bytes() -> None:
    for method in (Quantize(), EXPECTED, Quantize(activations=False)):
        found = {
            digest(quantized(residual_cnn(), feeds_of(1, 3, 16, 16), method)) for _ in range(2)
        }
        assert len(found) == 1


BODIES = f"""{HEAD}
g (bool c, float[N, 32] x) => (float[A, B] y) {{
    m = MatMul(x, v)
    y = If(c)<
        then_branch = yes () => (float[A, B] p) {{ p = MatMul(m, w) }},
        else_branch = no () => (float[A, B] q) {{ q = Relu(m) }}
    >
}}"""


def test_layers_in_bodies_get_int8_weights_and_run_in_float() -> None:
    proto = model_of(BODIES, {"v": normal(0, 32, 48), "w": normal(1, 48, 48)})
    feeds = [{"c": np.array(k % 2 == 0), "x": normal(k, 4, 32)} for k in range(4)]
    model = opened(onnx.ModelProto.FromString(proto.SerializeToString()))
    rows = rows_of(model, context_of(model, feeds), EXPECTED)
    assert [(row.targets[0], row.setting) for row in rows] == [
        ("m", "integer"),
        ("m", "float"),
        ("y/then_branch/p", "float"),
    ]
    model = quantized(proto, feeds)
    for feed in feeds[:2]:
        near(proto, model, feed, 30)
    assert {layer.id: layer.is_dense for layer in layers(model)} == {
        "m": False,
        "y/then_branch/p": False,
    }
    again = opened(to_proto(model))
    stored = [t.dtype for t in (layer.stored for layer in layers(again))]
    assert stored == [np.int8, np.int8]
    assert to_proto(model).ByteSize() < 0.4 * proto.ByteSize()


def test_a_body_that_reads_a_quantized_tensor_gets_its_values() -> None:
    text = f"""{HEAD}
    g (bool c, float[1, 4, 9, 9] x) => (float[A, B, C, D] y) {{
        k = Conv(x, w, b)
        r = Relu(k)
        d = Conv(r, v)
        y = If(c)<
            then_branch = yes () => (float[A, B, C, D] p) {{ p = Neg(r) }},
            else_branch = no () => (float[A, B, C, D] q) {{ q = Neg(d) }}
        >
    }}"""
    proto = model_of(text, CONV)
    feeds = [{"c": np.array(k % 2 == 0), "x": normal(k, 1, 4, 9, 9)} for k in range(4)]
    model = quantized(proto, feeds)
    for feed in feeds[:2]:
        near(proto, model, feed, 25)
    assert running(model)["QLinearConv"] == 2


def test_excluded_and_tuned_layers_get_what_the_recipe_says() -> None:
    model = opened(mlp())
    overrides = (("g2", {"quantize": False}), ("y", {"quantize": {"activations": False}}))
    context = context_of(model, feeds_of(4, 32), overrides=overrides)
    rows = rows_of(model, context, EXPECTED)
    assert [(row.targets[0], row.setting) for row in rows if row.setting == "integer"] == [
        ("m1", "integer")
    ]
    assert {row.targets[0] for row in rows} == {"m1", "y"}
    context = context_of(model, feeds_of(4, 32), exclude=("*",))
    assert list(EXPECTED.propose(model, context)) == []


@pytest.mark.parametrize("ranges", ["auto", *METHODS])
def test_any_way_to_pick_ranges_keeps_the_outputs(ranges: Any) -> None:
    feeds = feeds_of(1, 3, 16, 16)
    method = Quantize(ranges=ranges, bias_correction="expected")
    near(depthwise_cnn(), quantized(depthwise_cnn(), feeds, method), feeds[0], 25)


def test_activations_that_end_at_zero_have_their_zero_there() -> None:
    model = quantized(depthwise_cnn(), feeds_of(1, 3, 16, 16))
    points = {}
    for layer in layers(model):
        decode = layer.input.inputs[0]
        points[layer.id] = (int(decode.inputs[2].values), float(decode.inputs[1].values) * 255)
    assert points["c2"][0] == points["c3"][0] == 0
    assert max(points["c2"][1], points["c3"][1]) <= 6 + 1e-5
    assert points["c1"][0] > 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weight_bits": 4}, "quantize: weight bits must be 7 or 8, got 4"),
        (
            {"ranges": "wide"},
            "quantize: ranges must be auto, minmax, moving-average, percentile, mse, entropy, "
            "got 'wide'",
        ),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        Quantize(**settings)
    assert str(caught.value) == message


def test_expected_errors_and_savings_are_in_the_right_order() -> None:
    model = opened(residual_cnn())
    context = context_of(model, feeds_of(1, 3, 16, 16))
    rows = rows_of(model, context, EXPECTED)
    layer_rows: dict[str, list[Proposal]] = {}
    for row in rows:
        layer_rows.setdefault(row.targets[0], []).append(row)
    for integer, float_ in layer_rows.values():
        assert (integer.setting, float_.setting) == ("integer", "float")
        assert 0 < float_.error < integer.error < 1e-2
        assert 0 == float_.cost_saved < integer.cost_saved


W64 = normal(7, 64, 64, scale=0.2)
RECURRENT = """<ir_version: 8, opset_import: ["": 17]>
g (bool c, float[S, 1, 16] x) => (float[A, B, C, D] y) {
    y = If(c)<
        then_branch = yes () => (float[A, B, C, D] p) { p = LSTM<hidden_size=16>(x, w, r) },
        else_branch = no () => (float[A, B, C, D] q) { q = LSTM<hidden_size=16>(x, v, r) }
    >
}"""


def test_recurrent_weights_in_branches_become_int8_and_fold_away() -> None:
    weights = {"w": normal(0, 1, 64, 16, scale=0.3), "r": normal(1, 1, 64, 16, scale=0.3)}
    proto = model_of(RECURRENT, {**weights, "v": weights["w"]})
    model = opened(proto)
    rows = [row for row in Quantize().propose(model, CONTEXT) if isinstance(row, Proposal)]
    assert {row.setting for row in rows} == {"float"}
    # One weight, read in both branches, is one row.
    assert sorted(len(row.targets) for row in rows) == [1, 1, 2]
    Quantize().apply(model, asked_for(rows), CONTEXT)
    drop_unused(model)
    x = {"x": normal(2, 5, 1, 16), "c": np.array(True)}
    result = to_proto(model)
    np.testing.assert_allclose(outputs(result, x)["y"], outputs(proto, x)["y"], atol=0.02)
    assert set(running_operators(result.SerializeToString())) == {"If", "LSTM"}
    assert {t.name for t in proto.graph.initializer} == {"w", "r", "v"}
    before = proto.ByteSize()
    pack(result)
    # Equal in all branches, so stored once: w and v have become one.
    assert result.ByteSize() < 2 * 1024 + 1200 < before / 3
    assert set(running_operators(result.SerializeToString())) == {"If", "LSTM"}


def test_a_weight_read_twice_is_quantized_for_both_and_stored_once() -> None:
    proto = graph("a = MatMul(x, w) b = Relu(a) y = MatMul(b, w)", "N, 64", 2, {"w": W64})
    model = opened(proto)
    (row,) = Quantize(activations=False).propose(model, CONTEXT)
    assert isinstance(row, Proposal)
    assert row.targets == ("a", "y")
    Quantize().apply(model, [row], CONTEXT)
    drop_unused(model)
    result = to_proto(model)
    pack(result)
    saved = proto.ByteSize() - result.ByteSize()
    assert abs(saved - row.bytes_saved) < 200
    assert saved > 0.7 * proto.ByteSize()


def test_a_weight_that_something_else_reads_too_is_left_alone() -> None:
    proto = graph("a = MatMul(x, w) y = Add(a, w)", "64, 64", 2, {"w": W64})
    (row,) = Quantize().propose(opened(proto), CONTEXT)
    assert isinstance(row, Refusal)
    assert row.reason == "the weight is shared with another node"


@pytest.mark.parametrize("head", ["y = Gemm<transB=1>(h, w)", "t = Transpose(w) y = MatMul(h, t)"])
def test_an_embedding_and_the_head_that_reads_its_table_share_int8_rows(head: str) -> None:
    text = f"""{HEAD} g (int64[N] x) => (float[N, 64] y) {{
        e = Gather(w, x)
        h = Relu(e)
        {head}
    }}"""
    proto = model_of(text, {"w": W64})
    model = opened(proto)
    (row,) = Quantize().propose(model, CONTEXT)
    assert isinstance(row, Proposal)
    assert row.targets == ("e", "y")
    Quantize().apply(model, [row], CONTEXT)
    drop_unused(model)
    result = to_proto(model)
    feed = {"x": np.arange(64)}
    np.testing.assert_allclose(outputs(result, feed)["y"], outputs(proto, feed)["y"], atol=0.1)
    pack(result)
    assert result.ByteSize() < 64 * 64 + 1200


def test_embeddings_in_bodies_are_gathered_as_int8_rows() -> None:
    text = f"""{HEAD} g (bool c, int64[N] x) => (float[A, B] y) {{
        y = If(c)<
            then_branch = yes () => (float[A, B] p) {{ p = Gather(w, x) }},
            else_branch = no () => (float[A, B] q) {{ e = Gather(v, x) q = Neg(e) }}
        >
    }}"""
    proto = model_of(text, {"w": W64, "v": W64.copy()})
    model = opened(proto)
    rows = [row for row in Quantize().propose(model, CONTEXT) if isinstance(row, Proposal)]
    assert {row.setting for row in rows} == {"rows"}
    Quantize().apply(model, asked_for(rows), CONTEXT)
    drop_unused(model)
    result = to_proto(model)
    pack(result)
    # Both tables hold the same, and are stored once.
    assert result.ByteSize() < W64.size + 1200
    for case in (True, False):
        feed = {"c": np.array(case), "x": np.array([3, 60, 0])}
        np.testing.assert_allclose(outputs(result, feed)["y"], outputs(proto, feed)["y"], atol=0.01)


def test_a_float16_model_gets_int8_weights_and_stays_in_float16() -> None:
    half = {"w": W64.astype(np.float16), "v": W64[::-1].astype(np.float16)}
    text = f"""{HEAD} g (float16[N, 64] x) => (float16[N, 64] y) {{
        a = MatMul(x, w)
        i = Cast<to=7>(a)
        k = Abs(i)
        e = Gather(v, i)
        s = ReduceMean<axes=[1], keepdims=0>(e)
        y = Add(a, s)
    }}"""
    proto = model_of(text, half)
    model = opened(proto)
    assert [layer.is_half for layer in layers(model)] == [True, True]
    rows = [row for row in Quantize().propose(model, CONTEXT) if isinstance(row, Proposal)]
    assert [row.setting for row in rows] == ["float", "rows"]
    Quantize().apply(model, asked_for(rows), CONTEXT)
    drop_unused(model)
    result = to_proto(model)
    x = {"x": np.clip(normal(0, 3, 64, scale=2), -5, 5).astype(np.float16)}
    expected = outputs(proto, x)["y"].astype(np.float32)
    found = outputs(result, x)["y"].astype(np.float32)
    np.testing.assert_allclose(found, expected, atol=0.2)
    again = opened(result)
    (matmul,) = layers(again)
    assert (matmul.is_half, matmul.is_dense, matmul.is_multiplied) == (True, False, True)
    assert result.ByteSize() < 0.7 * proto.ByteSize()


@pytest.mark.parametrize("auto", ["SAME_UPPER", "SAME_LOWER", "VALID"])
def test_convolutions_that_pad_by_themselves_run_in_integers(auto: str) -> None:
    body = f'''c = Conv<auto_pad="{auto}", strides=[2,2]>(x, w, b) r = Relu(c)
        d = Conv<auto_pad="{auto}">(r, v) y = Relu(d)'''
    constants = {"w": normal(0, 16, 8, 3, 3), "b": normal(1, 16), "v": normal(2, 16, 16, 2, 2)}
    proto = graph(body, "N, 8, 9, 9", 4, constants)
    feeds = feeds_of(2, 8, 9, 9)
    model = quantized(proto, feeds)
    near(proto, model, feeds[0], 30)
    kinds = running_operators(to_proto(model).SerializeToString())
    assert kinds["QLinearConv"] == 2
