"""Small models to damage: between them, every operator and form that the package knows."""

import tempfile
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper, parser

from onnxslim_tk.graph.model import from_proto
from onnxslim_tk.pipeline.files import save

_TEXTS: Final[dict[str, str]] = {
    "cnn": """<ir_version: 8, opset_import: ["": 17]>
    cnn (float[N, 3, 8, 8] x) => (float[N, 5] y, float[N, 8, 8, 8] boxes) {
        p0 = Pad(x, pads)
        c1 = Conv(p0, w1)
        n1 = BatchNormalization(c1, s, b, m, v)
        r1 = Relu(n1)
        c2 = Conv<pads=[1, 1, 1, 1], group=8>(r1, w2, b2)
        h2 = HardSigmoid(c2)
        g2 = Mul(c2, h2)
        c3 = Conv(g2, w3)
        t3 = ConvTranspose<strides=[2, 2]>(c3, w4)
        q3 = AveragePool<kernel_shape=[2, 2], strides=[2, 2]>(t3)
        a3 = Add(q3, r1)
        boxes = Concat<axis=1>(left, right)
        left, right = Split<axis=1>(a3)
        l3 = Clip(a3, low, high)
        d3 = Dropout(l3)
        f3 = GlobalAveragePool(d3)
        e3 = Flatten(f3)
        y = Gemm<transB=1>(e3, w5, b5)
    }""",
    "attention": """<ir_version: 8, opset_import: ["": 17], metadata_props: ["stride": "32"]>
    attention (int64[B, S] ids) => (float[B, S, 16] y) {
        e = Gather(table, ids)
        l = LayerNormalization<axis=-1>(e, ones, zeros)
        q = MatMul(l, wq)
        qb = Add(bq, q)
        k = MatMul(l, wk)
        kt = Transpose<perm=[0, 2, 1]>(k)
        s = MatMul(qb, kt)
        d = Div(s, four)
        a = Softmax<axis=-1>(d)
        o = MatMul(a, l)
        mu = ReduceMean<axes=[-1]>(o)
        c = Sub(o, mu)
        c2 = Mul(c, c)
        var = ReduceMean<axes=[-1]>(c2)
        ve = Add(var, eps)
        sd = Sqrt(ve)
        n = Div(c, sd)
        g = Erf(n)
        i = Identity(g)
        y = Tanh(i)
    }""",
    "bodies": """<ir_version: 8, opset_import: ["": 16]>
    bodies (float[2, 8] x, bool cond, int64 trips) => (float[2, 8] y, float[2, 8] z) {
        y = If (cond) <
            then_branch = then () => (float[2, 8] ty) {
                tm = MatMul(x, w)
                ty = Relu(tm)
            },
            else_branch = other () => (float[2, 8] ey) {
                k = Constant<value = float[1] {2.0}>()
                em = Mul(x, k)
                ey = Add(em, bias)
            }
        >
        z = Loop (trips, cond, x) <
            body = body (int64 i, bool c, float[2, 8] state) => (bool go, float[2, 8] next) {
                go = Identity(c)
                lm = MatMul(state, w)
                next = Tanh(lm)
            }
        >
    }""",
    "recurrent": """<ir_version: 8, opset_import: ["": 14]>
    recurrent (float[S, 1, 4] x, float[1, 1, 8] h) => (float[S, 1, 1, 8] y, float[1, 1, 8] hn) {
        y, hn, cn = LSTM<hidden_size=8>(x, wl, rl, bl, , h, h)
        g, gn = GRU<hidden_size=8>(x, wg, rg)
    }""",
    "quantized": """<ir_version: 8, opset_import: ["": 13]>
    quantized (float[N, 16] x) => (float[N, 4] y, float[N, 4] z) {
        xq = QuantizeLinear(x, xs, xz)
        xd = DequantizeLinear(xq, xs, xz)
        wd = DequantizeLinear<axis=1>(wq, ws, wz)
        m = MatMul(xd, wd)
        mq = QuantizeLinear(m, xs, xz)
        y = DequantizeLinear(mq, xs, xz)
        dq, ds, dz = DynamicQuantizeLinear(x)
        di = MatMulInteger(dq, wq, dz)
        df = Cast<to=1>(di)
        dsc = Mul(ds, ws)
        z = Mul(df, dsc)
    }""",
    "chains": """<ir_version: 8, opset_import: ["": 15]>
    chains (float[N, 12] x) => (float[N, 6] y, int64[k] shape) {
        size = Constant<value = int64[2] {12, 6}>()
        fill = ConstantOfShape<value = float[1] {0.5}>(size)
        wide = Cast<to=1>(codes)
        grown = Expand(row, size)
        picked = Gather(book, index)
        flat = Concat<axis=0>(picked, picked)
        formed = Reshape(flat, size)
        sum = Add(fill, formed)
        count = Range(zero, twelve, one)
        tiled = Tile(count, six)
        mask = Equal(tiled, tiled)
        shape = Shape(x)
        w1 = Add(sum, grown)
        scale = Mul(wide, half)
        w2 = Add(w1, scale)
        cut = Slice(w2, start, end)
        back = Concat<axis=0>(cut, cut)
        m = MatMul(x, back)
        u = Unsqueeze(m, axis)
        s = Squeeze(u, axis)
        y = Where(yes, s, m)
    }""",
    "old": """<ir_version: 3, opset_import: ["": 9]>
    old (float[1, 2, 6, 6] x, float[4, 2, 3, 3] w1) => (float[1, 4, 8, 8] y) {
        c = Conv<pads=[1, 1, 1, 1]>(x, w1)
        r = LeakyRelu<alpha=0.1>(c)
        k = MaxPool<kernel_shape=[2, 2], strides=[1, 1]>(r)
        s = Slice<starts=[0], ends=[4], axes=[2]>(k)
        t = Slice<starts=[0], ends=[4], axes=[3]>(s)
        y = Upsample<mode="nearest">(t, scales)
    }""",
    "functions": """<ir_version: 9, opset_import: ["": 17, "own": 1, "vendor": 1]>
    functions (float[2, 8] x) => (float[2, 8] y) {
        f = own.layer <slope: float = 0.2> (x, w)
        y = own.layer (f, w)
    }
    <opset_import: ["": 17], domain: "own">
    layer <slope> (a, b) => (c) { m = MatMul(a, b) c = LeakyRelu <alpha: float = @slope> (m) }""",
}


def seeds() -> dict[str, bytes]:
    """Files by name; each is a valid model, and some are packed by the package itself."""
    made = {name: _built(name) for name in _TEXTS}
    files = {name: proto.SerializeToString(deterministic=True) for name, proto in made.items()}
    for name in ("cnn", "attention", "quantized"):
        source = made[name]
        for tensor in source.graph.initializer:
            _make_packable(tensor)
        opened = from_proto(onnx.ModelProto.FromString(source.SerializeToString()), b"")
        with tempfile.TemporaryDirectory() as folder:
            save(opened, Path(folder) / "packed.onnx")
            files[f"{name}, packed"] = (Path(folder) / "packed.onnx").read_bytes()
    return files


def _built(name: str) -> onnx.ModelProto:
    proto = parser.parse_model(_TEXTS[name])
    for key, values in _constants(name).items():
        proto.graph.initializer.append(numpy_helper.from_array(np.asarray(values), key))
    if name == "functions":
        annotation = proto.graph.quantization_annotation.add(tensor_name="f")
        annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="w")
        proto.graph.node[0].doc_string = "a note"
        helper.set_model_props(proto, {"author": "somebody"})
        words = helper.make_tensor("words", TensorProto.STRING, [2], np.array(["a", "b"], object))
        proto.graph.initializer.append(words)
        proto.graph.sparse_initializer.append(
            helper.make_sparse_tensor(
                numpy_helper.from_array(np.ones(2, np.float32), "sparse"),
                numpy_helper.from_array(np.array([1, 5]), "places"),
                [8],
            )
        )
        proto.graph.node.append(helper.make_node("Add", ["f", "sparse"], ["unused"]))
    return proto


def _make_packable(tensor: TensorProto) -> None:
    """Give a weight few distinct values and repeats, in a size that is worth an encoding."""
    values = numpy_helper.to_array(tensor)
    if values.dtype == np.float32 and values.size >= 48:
        tensor.CopyFrom(numpy_helper.from_array(np.round(values * 4) / 4, tensor.name))


def _constants(name: str) -> dict[str, Any]:
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray[Any, np.dtype[np.float32]]:
        return rng.standard_normal(shape).astype(np.float32)

    f32, i64 = np.float32, np.int64
    tables: dict[str, dict[str, Any]] = {
        "cnn": {
            **{"pads": np.array([0, 0, 1, 1, 0, 0, 1, 1]), "low": f32(0), "high": f32(6)},
            **{"w1": normal(8, 3, 3, 3), "s": normal(8), "b": normal(8), "m": normal(8)},
            **{"v": np.abs(normal(8)), "w2": normal(8, 1, 3, 3), "b2": normal(8)},
            **{"w3": normal(8, 8, 1, 1), "w4": normal(8, 8, 2, 2), "w5": normal(5, 8)},
            **{"b5": normal(5)},
        },
        "attention": {
            **{"table": normal(80, 16), "ones": normal(16), "zeros": normal(16)},
            **{"wq": normal(16, 16), "bq": normal(16), "wk": normal(16, 16)},
            **{"four": f32(4), "eps": f32(1e-5)},
        },
        "bodies": {"w": normal(8, 8), "bias": normal(8)},
        "recurrent": {
            **{"wl": normal(1, 32, 4), "rl": normal(1, 32, 8), "bl": normal(1, 64)},
            **{"wg": normal(1, 24, 4), "rg": normal(1, 24, 8)},
        },
        "quantized": {
            **{"xs": f32(0.05), "xz": np.uint8(120), "ws": np.abs(normal(4))},
            "wq": rng.integers(-128, 127, (16, 4)).astype(np.int8),
            "wz": np.zeros(4, np.int8),
        },
        "chains": {
            **{"codes": rng.integers(-8, 8, (12, 6)).astype(np.int8), "row": normal(1, 6)},
            **{"book": normal(4), "index": rng.integers(0, 4, 36).astype(np.int32)},
            **{"zero": i64(0), "twelve": i64(12), "one": i64(1), "six": np.array([6])},
            **{"half": f32(0.5), "start": np.array([0]), "end": np.array([6])},
            **{"axis": np.array([1]), "yes": np.array([True])},
        },
        "old": {"w1": normal(4, 2, 3, 3), "scales": np.array([1, 1, 2, 2], f32)},
        "functions": {"w": normal(8, 8)},
    }
    return tables[name]
