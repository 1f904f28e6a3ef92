import numpy as np
import onnx

from onnxslim_tk.graph.edit import drop_unused
from onnxslim_tk.graph.layers import layers
from onnxslim_tk.measure.runtime import running_operators
from onnxslim_tk.packing import pack
from onnxslim_tk.passes.quantize import Quantize
from onnxslim_tk.plan.policy import asked_for
from tests.models import CONTEXT, model_of, normal, opened, outputs, since, to_proto
from tests.quantized import CONV, EXPECTED, HEAD, W64, context_of, near, quantized, running
from tests.rows import rows_of

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


@since("1.24", "ends the process where bodies read a convolution outside")
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
    rows = rows_of(model, CONTEXT, Quantize())
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


def test_embeddings_in_bodies_are_gathered_as_int8_rows() -> None:
    text = f"""{HEAD} g (bool c, int64[N] x) => (float[A, B] y) {{
        y = If(c)<
            then_branch = yes () => (float[A, B] p) {{ p = Gather(w, x) }},
            else_branch = no () => (float[A, B] q) {{ e = Gather(v, x) q = Neg(e) }}
        >
    }}"""
    proto = model_of(text, {"w": W64, "v": W64.copy()})
    model = opened(proto)
    rows = rows_of(model, CONTEXT, Quantize())
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
