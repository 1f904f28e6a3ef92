"""Small networks of every shape that channels take: each as a model, and its inputs."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper, parser

from tests.models import normal, statistics

Array = NDArray[Any]


def network(
    body: str,
    weights: Mapping[str, Any],
    inputs: str = "float[N, 3, 8, 8] x",
    output: str = "float[A, B] y",
    opset: int = 17,
) -> onnx.ModelProto:
    """A model of ONNX text; weights are given by shape, or as they are."""
    text = f'<ir_version: 8, opset_import: ["": {opset}]> g ({inputs}) => ({output}) {{{body}}}'
    proto = parser.parse_model(text)
    for k, (name, given) in enumerate(weights.items()):
        fan = max(int(np.prod(given[1:])), 1) if isinstance(given, tuple) else 1
        values = normal(k, *given, scale=fan**-0.5) if isinstance(given, tuple) else given
        proto.graph.initializer.append(numpy_helper.from_array(np.asarray(values), name))
    return proto


HEAD = " p_ = GlobalAveragePool({0}) f_ = Flatten(p_) y = Gemm<transB=1>(f_, wy, by)"
MAP = "float[A, B, C, D] y"
ROWS = "float[A, B, C] y"
IMAGES = {"x": normal(90, 2, 3, 8, 8)}
TOKENS = {"x": normal(91, 2, 5, 16)}
SEQUENCE = {"x": normal(92, 6, 2, 10)}


def head(channels: int) -> dict[str, Any]:
    return {"wy": (5, channels), "by": (5,)}


def plain_chain() -> onnx.ModelProto:
    body = "c1 = Conv<pads=[1,1,1,1]>(x, w1, b1) r1 = Relu(c1) c2 = Conv(r1, w2, b2) r2 = Relu(c2)"
    weights: dict[str, Any] = {
        "w1": (8, 3, 3, 3),
        "b1": (8,),
        "w2": (12, 8, 3, 3),
        "b2": (12,),
        **head(12),
    }
    return network(body + HEAD.format("r2"), weights)


def residual() -> onnx.ModelProto:
    body = """c0 = Conv(x, w0, b0) c1 = Conv<pads=[1,1,1,1]>(c0, w1) r1 = Relu(c1)
        c2 = Conv<pads=[1,1,1,1]>(r1, w2) s = Add(c0, c2) r = Relu(s)"""
    weights: dict[str, Any] = {
        "w0": (8, 3, 1, 1),
        "b0": (8,),
        "w1": (12, 8, 3, 3),
        "w2": (8, 12, 3, 3),
        **head(8),
    }
    return network(body + HEAD.format("r"), weights)


def preactivation_residual() -> onnx.ModelProto:
    body = """c0 = Conv(x, w0) n1 = BatchNormalization(c0, as, ab, am, av) r1 = Relu(n1)
        c1 = Conv<pads=[1,1,1,1]>(r1, w1) n2 = BatchNormalization(c1, bs, bb, bm, bv)
        r2 = Relu(n2) c2 = Conv<pads=[1,1,1,1]>(r2, w2) s = Add(c0, c2)
        n3 = BatchNormalization(s, cs, cb, cm, cv) r3 = Relu(n3)"""
    weights: dict[str, Any] = {
        "w0": (8, 3, 1, 1),
        "w1": (12, 8, 3, 3),
        "w2": (8, 12, 3, 3),
        **head(8),
    }
    more = {**statistics(1, 8, "a"), **statistics(5, 12, "b"), **statistics(9, 8, "c")}
    return network(body + HEAD.format("r3"), {**weights, **more})


def bottleneck() -> onnx.ModelProto:
    body = """c0 = Conv(x, w0) a = Conv(c0, wa) ra = Relu(a)
        b = Conv<pads=[1,1,1,1], strides=[2,2]>(ra, wb) rb = Relu(b) c = Conv(rb, wc)
        d = Conv<strides=[2,2]>(c0, wd) s = Add(c, d) r = Relu(s)"""
    weights: dict[str, Any] = {
        "w0": (8, 3, 1, 1),
        "wa": (6, 8, 1, 1),
        "wb": (6, 6, 3, 3),
        "wc": (16, 6, 1, 1),
    }
    return network(body + HEAD.format("r"), {**weights, "wd": (16, 8, 1, 1), **head(16)})


def dense_concat() -> onnx.ModelProto:
    body = """c0 = Conv(x, w0) n1 = BatchNormalization(c0, as, ab, am, av) r1 = Relu(n1)
        c1 = Conv<pads=[1,1,1,1]>(r1, w1) t1 = Concat<axis=1>(c0, c1)
        n2 = BatchNormalization(t1, bs, bb, bm, bv) r2 = Relu(n2)
        c2 = Conv<pads=[1,1,1,1]>(r2, w2) t2 = Concat<axis=1>(t1, c2)"""
    weights: dict[str, Any] = {
        "w0": (8, 3, 1, 1),
        "w1": (4, 8, 3, 3),
        "w2": (4, 12, 3, 3),
        **head(16),
    }
    more = {**statistics(1, 8, "a"), **statistics(5, 12, "b")}
    return network(body + HEAD.format("t2"), {**weights, **more})


def inception_branches() -> onnx.ModelProto:
    body = """a = Conv(x, wa) b0 = Conv(x, wb0) b = Conv<pads=[1,1,1,1]>(b0, wb)
        m = MaxPool<kernel_shape=[3,3], pads=[1,1,1,1]>(x) c = Conv(m, wc)
        t = Concat<axis=1>(a, b, c) r = Relu(t) d = Conv(r, wd)"""
    weights: dict[str, Any] = {
        "wa": (4, 3, 1, 1),
        "wb0": (6, 3, 1, 1),
        "wb": (8, 6, 3, 3),
        "wc": (4, 3, 1, 1),
    }
    return network(body + HEAD.format("d"), {**weights, "wd": (10, 16, 1, 1), **head(10)})


def unet_with_skip_and_resize() -> onnx.ModelProto:
    body = """e1 = Conv<pads=[1,1,1,1]>(x, w1) r1 = Relu(e1)
        d1 = MaxPool<kernel_shape=[2,2], strides=[2,2]>(r1)
        e2 = Conv<pads=[1,1,1,1]>(d1, w2) r2 = Relu(e2)
        u = Resize<mode="nearest">(r2, , scales) t = Concat<axis=1>(u, r1)
        e3 = Conv<pads=[1,1,1,1]>(t, w3) r3 = Relu(e3) y = Conv(r3, w4)"""
    weights: dict[str, Any] = {
        "w1": (8, 3, 3, 3),
        "w2": (12, 8, 3, 3),
        "w3": (8, 20, 3, 3),
        "w4": (2, 8, 1, 1),
    }
    return network(body, {**weights, "scales": np.array([1, 1, 2, 2], np.float32)}, output=MAP)


def mobilenet_v2() -> onnx.ModelProto:
    body = """c0 = Conv(x, w0) e = Conv(c0, we, be) re = Clip(e, zero, six)
        d = Conv<group=16, pads=[1,1,1,1]>(re, wd, bd) rd = Clip(d, zero, six)
        p = Conv(rd, wp) s = Add(c0, p)"""
    weights: dict[str, Any] = {
        "w0": (8, 3, 1, 1),
        "we": (16, 8, 1, 1),
        "be": (16,),
        "wd": (16, 1, 3, 3),
    }
    limits = {"zero": np.float32(0), "six": np.float32(6)}
    weights |= {"bd": (16,), "wp": (8, 16, 1, 1), **head(8)}
    return network(body + HEAD.format("s"), {**weights, **limits})


def mobilenet_v3_with_se() -> onnx.ModelProto:
    body = """e = Conv(x, we) he = HardSwish(e) d = Conv<group=16, pads=[1,1,1,1]>(he, wd)
        hd = HardSwish(d) q = GlobalAveragePool(hd) s1 = Conv(q, ws1, bs1) r = Relu(s1)
        s2 = Conv(r, ws2, bs2) g = HardSigmoid(s2) m = Mul(g, hd) p = Conv(m, wp)"""
    weights: dict[str, Any] = {
        "we": (16, 3, 1, 1),
        "wd": (16, 1, 3, 3),
        "ws1": (6, 16, 1, 1),
        "bs1": (6,),
    }
    weights |= {"ws2": (16, 6, 1, 1), "bs2": (16,), "wp": (8, 16, 1, 1), **head(8)}
    return network(body + HEAD.format("p"), weights)


def channel_shuffle() -> onnx.ModelProto:
    body = """c = Conv(x, w0) a, b = Split<axis=1>(c, halves)
        b1 = Conv(b, w1) r1 = Relu(b1) b2 = Conv<group=6, pads=[1,1,1,1]>(r1, w2)
        b3 = Conv(b2, w3) r3 = Relu(b3) t = Concat<axis=1>(a, r3)
        g = Reshape(t, apart) h = Transpose<perm=[0,2,1,3,4]>(g) k = Reshape(h, together)
        d = Conv(k, w4)"""
    weights: dict[str, Any] = {
        "w0": (16, 3, 1, 1),
        "w1": (6, 8, 1, 1),
        "w2": (6, 1, 3, 3),
        "w3": (8, 6, 1, 1),
    }
    shapes = {
        "halves": np.array([8, 8]),
        "apart": np.array([-1, 2, 8, 8, 8]),
        "together": np.array([-1, 16, 8, 8]),
    }
    return network(body + HEAD.format("d"), {**weights, **shapes, "w4": (6, 16, 1, 1), **head(6)})


def grouped() -> onnx.ModelProto:
    body = """c0 = Conv(x, w0) r0 = Relu(c0) c1 = Conv<group=4, pads=[1,1,1,1]>(r0, w1, b1)
        r1 = Relu(c1) c2 = Conv(r1, w2)"""
    weights: dict[str, Any] = {
        "w0": (16, 3, 1, 1),
        "w1": (24, 4, 3, 3),
        "b1": (24,),
        "w2": (8, 24, 1, 1),
    }
    return network(body + HEAD.format("c2"), {**weights, **head(8)})


def transposed_decoder() -> onnx.ModelProto:
    body = """c = Conv<strides=[2,2]>(x, w0, b0) r = Relu(c)
        d1 = ConvTranspose<strides=[2,2]>(r, w1, b1) r1 = Relu(d1)
        d2 = ConvTranspose<group=2, kernel_shape=[2,2]>(r1, w2, b2) r2 = Relu(d2)
        y = Conv(r2, w3)"""
    weights: dict[str, Any] = {"w0": (12, 3, 2, 2), "b0": (12,), "w1": (12, 8, 2, 2), "b1": (8,)}
    return network(
        body, {**weights, "w2": (8, 6, 2, 2), "b2": (12,), "w3": (2, 12, 1, 1)}, output=MAP
    )


def yolo_c2f() -> onnx.ModelProto:
    body = """c = Conv(x, w0) s0 = Sigmoid(c) m = Mul(c, s0) a, b = Split<axis=1>(m, halves)
        b1 = Conv<pads=[1,1,1,1]>(b, w1) b2 = Conv<pads=[1,1,1,1]>(b1, w2) s = Add(b, b2)
        t = Concat<axis=1>(a, b, s) d = Conv(t, w3)"""
    weights: dict[str, Any] = {
        "w0": (16, 3, 1, 1),
        "w1": (6, 8, 3, 3),
        "w2": (8, 6, 3, 3),
        "w3": (10, 24, 1, 1),
    }
    halves = {"halves": np.array([8, 8])}
    return network(body + HEAD.format("d"), {**weights, **halves, **head(10)})


def feature_pyramid() -> onnx.ModelProto:
    body = """c1 = Conv<pads=[1,1,1,1]>(x, w1) r1 = Relu(c1)
        c2 = Conv<pads=[1,1,1,1], strides=[2,2]>(r1, w2) r2 = Relu(c2)
        l1 = Conv(r1, v1, b1) l2 = Conv(r2, v2, b2) u = Resize<mode="nearest">(l2, , , sizes)
        s = Add(l1, u) o1 = Conv(s, q) o2 = Conv(l2, q) y = Relu(o1) z = Relu(o2)"""
    weights: dict[str, Any] = {
        "w1": (8, 3, 3, 3),
        "w2": (12, 8, 3, 3),
        "v1": (10, 8, 1, 1),
        "v2": (10, 12, 1, 1),
    }
    weights |= {"b1": (10,), "b2": (10,), "q": (4, 10, 1, 1)}
    sizes = {"sizes": np.array([2, 10, 8, 8])}
    return network(body, {**weights, **sizes}, output="float[A, B, C, D] y, float[E, F, G, H] z")


def flatten_to_gemm() -> onnx.ModelProto:
    body = """c = Conv<strides=[4,4]>(x, w0, b0) r = Relu(c) f = Flatten(r)
        g = Gemm(f, w1, b1) r1 = Relu(g) y = MatMul(r1, w2)"""
    weights: dict[str, Any] = {
        "w0": (8, 3, 4, 4),
        "b0": (8,),
        "w1": (32, 12),
        "b1": (12,),
        "w2": (12, 5),
    }
    return network(body, weights)


def reshape_of_any_batch() -> onnx.ModelProto:
    body = """c = Conv<strides=[4,4]>(x, w0, b0) s = Shape(x) n = Gather<axis=0>(s, zero)
        u = Unsqueeze(n, axes) t = Concat<axis=0>(u, rest) f = Reshape(c, t) y = MatMul(f, w1)"""
    shapes = {"zero": np.array(0), "axes": np.array([0]), "rest": np.array([32])}
    return network(body, {"w0": (8, 3, 4, 4), "b0": (8,), "w1": (32, 5), **shapes})


def unfolded_normalization() -> onnx.ModelProto:
    body = """c = Conv<pads=[1,1,1,1]>(x, w1) n = BatchNormalization(c, as, ab, am, av) r = Relu(n)
        d = Conv(r, w2) m = BatchNormalization(d, bs, bb, bm, bv) q = Relu(m)"""
    weights: dict[str, Any] = {"w1": (8, 3, 3, 3), "w2": (12, 8, 3, 3), **head(12)}
    more = {**statistics(1, 8, "a"), **statistics(5, 12, "b")}
    return network(body + HEAD.format("q"), {**weights, **more})


def nhwc_behind_transposes() -> onnx.ModelProto:
    body = """i = Transpose<perm=[0,3,1,2]>(x) c = Conv(i, w0) t = Transpose<perm=[0,2,3,1]>(c)
        a = Add(t, b0) r = Relu(a) m = MatMul(r, w1) k = Mul(m, v1)
        j = Transpose<perm=[0,3,1,2]>(k) d = Conv(j, w2)"""
    weights: dict[str, Any] = {
        "w0": (8, 3, 1, 1),
        "b0": (8,),
        "w1": (8, 12),
        "v1": (12,),
        "w2": (6, 12, 1, 1),
    }
    proto = network(body + HEAD.format("d"), {**weights, **head(6)}, "float[N, 8, 8, 3] x")
    return proto


def convnext() -> onnx.ModelProto:
    body = """c = Conv(x, w0) d = Conv<group=8, pads=[3,3,3,3]>(c, w1, b1)
        t = Transpose<perm=[0,2,3,1]>(d) n = LayerNormalization(t, g, h)
        m = MatMul(n, w2) a = Add(m, b2) e = Div(a, root) f = Erf(e) o = Add(f, one) q = Mul(a, o)
        z = MatMul(q, w3) k = Mul(z, gamma) u = Transpose<perm=[0,3,1,2]>(k) s = Add(c, u)"""
    weights: dict[str, Any] = {
        "w0": (8, 3, 1, 1),
        "w1": (8, 1, 7, 7),
        "b1": (8,),
        "g": (8,),
        "h": (8,),
    }
    weights |= {"w2": (8, 32), "b2": (32,), "w3": (32, 8), "gamma": (8,), **head(8)}
    numbers = {"root": np.float32(2**0.5), "one": np.float32(1)}
    return network(body + HEAD.format("s"), {**weights, **numbers})


_ATTEND = """k2 = Transpose<perm=[0,2,3,1]>(k1) q2 = Transpose<perm=[0,2,1,3]>(q1)
    v2 = Transpose<perm=[0,2,1,3]>(v1) l = MatMul(q2, k2) z = Mul(l, half) s = Softmax(z)
    o = MatMul(s, v2) o1 = Transpose<perm=[0,2,1,3]>(o) o2 = Reshape(o1, flat) m = MatMul(o2, wo)
    n = Add(m, bo) y = Add(x, n)"""


def attention_of_separate_weights() -> onnx.ModelProto:
    body = """q = MatMul(x, wq) qb = Add(q, bq) k = MatMul(x, wk) kb = Add(k, bk) v = MatMul(x, wv)
        vb = Add(v, bv) q1 = Reshape(qb, heads) k1 = Reshape(kb, heads) v1 = Reshape(vb, heads)"""
    weights: dict[str, Any] = {f"w{n}": (16, 16) for n in "qkvo"} | {f"b{n}": (16,) for n in "qkvo"}
    shapes = {"heads": np.array([0, 0, 4, 4]), "flat": np.array([0, 0, 16])}
    more = {**shapes, "half": np.float32(0.5)}
    return network(body + _ATTEND, {**weights, **more}, "float[N, 5, 16] x", ROWS)


def attention_of_fused_weights() -> onnx.ModelProto:
    body = """w = MatMul(x, wi) b = Add(w, bi) r = Reshape(b, heads)
        t = Transpose<perm=[2,0,1,3,4]>(r) q1 = Gather(t, i0) k1 = Gather(t, i1)
        v1 = Gather(t, i2)"""
    shapes = {"heads": np.array([0, 0, 3, 4, 4]), "flat": np.array([0, 0, 16])}
    places = {f"i{n}": np.array(n) for n in range(3)}
    weights: dict[str, Any] = {"wi": (16, 48), "bi": (48,), "wo": (16, 16), "bo": (16,)}
    more = {**shapes, **places, "half": np.float32(0.5)}
    return network(body + _ATTEND, {**weights, **more}, "float[N, 5, 16] x", ROWS)


def attention_split_in_three() -> onnx.ModelProto:
    body = """w = MatMul(x, wi) b = Add(w, bi) q, k, v = Split<axis=2>(b, thirds)
        q1 = Reshape(q, heads) k1 = Reshape(k, heads) v1 = Reshape(v, heads)"""
    shapes = {"heads": np.array([0, 0, 4, 4]), "flat": np.array([0, 0, 16])}
    weights: dict[str, Any] = {"wi": (16, 48), "bi": (48,), "wo": (16, 16), "bo": (16,)}
    more = {**shapes, "thirds": np.array([16, 16, 16]), "half": np.float32(0.5)}
    return network(body + _ATTEND, {**weights, **more}, "float[N, 5, 16] x", ROWS)


def grouped_query_attention() -> onnx.ModelProto:
    body = """q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv) q1 = Reshape(q, heads)
        kr = Reshape(k, few) vr = Reshape(v, few)
        ku = Unsqueeze(kr, three) vu = Unsqueeze(vr, three)
        ke = Expand(ku, wide) ve = Expand(vu, wide) k1 = Reshape(ke, heads)
        v1 = Reshape(ve, heads)"""
    shapes = {"heads": np.array([0, 0, 4, 4]), "few": np.array([0, 0, 2, 4])}
    shapes |= {
        "wide": np.array([1, 1, 2, 2, 4]),
        "three": np.array([3]),
        "flat": np.array([0, 0, 16]),
    }
    weights: dict[str, Any] = {"wq": (16, 16), "wk": (16, 8), "wv": (16, 8), "wo": (16, 16)}
    more = {**shapes, "bo": (16,), "half": np.float32(0.5)}
    return network(body + _ATTEND, {**weights, **more}, "float[N, 5, 16] x", ROWS)


def gated_mlp() -> onnx.ModelProto:
    body = """g = MatMul(x, wg) s = Sigmoid(g) t = Mul(g, s) u = MatMul(x, wu) m = Mul(t, u)
        d = MatMul(m, wd) y = Add(x, d)"""
    weights: dict[str, Any] = {"wg": (16, 24), "wu": (16, 24), "wd": (24, 16)}
    return network(body, weights, "float[N, 5, 16] x", ROWS)


def _recurrent(op: str, gates: int, directions: int) -> onnx.ModelProto:
    way = ', direction="bidirectional"' if directions == 2 else ""
    states = ", , h0, c0" if op == "LSTM" else ", , h0"
    body = f"""n = Shape(x) i = Gather<axis=0>(n, one) u = Unsqueeze(i, zero)
        hs = Concat<axis=0>(dirs, u, units) h0 = ConstantOfShape(hs) c0 = ConstantOfShape(hs)
        o, last = {op}<hidden_size=8{way}>(x, w, r, b{states})
        t = Transpose<perm=[0,2,1,3]>(o) f = Reshape(t, flat) g = MatMul(f, w1) y = Relu(g)"""
    weights: dict[str, Any] = {
        "w": (directions, gates * 8, 10),
        "r": (directions, gates * 8, 8),
        "b": (directions, 2 * gates * 8),
        "w1": (directions * 8, 5),
    }
    shapes = {
        "one": np.array(1),
        "zero": np.array([0]),
        "dirs": np.array([directions]),
        "units": np.array([8]),
        "flat": np.array([0, 0, directions * 8]),
    }
    return network(body, {**weights, **shapes}, "float[T, N, 10] x", ROWS)


def lstm() -> onnx.ModelProto:
    return _recurrent("LSTM", 4, 1)


def gru() -> onnx.ModelProto:
    return _recurrent("GRU", 3, 1)


def bidirectional_lstm() -> onnx.ModelProto:
    return _recurrent("LSTM", 4, 2)


def weights_in_if_bodies() -> onnx.ModelProto:
    body = """c = Conv(x, w0) r = Relu(c)
        b = If(flag) <
            then_branch = t () => (float[A, B, C, D] p) {
                p1 = Conv(r, w1) p2 = Relu(p1) p = Conv(p2, w2)
            },
            else_branch = e () => (float[A, B, C, D] q) { q = Conv(r, w3) }
        > d = Conv(b, w4)"""
    weights: dict[str, Any] = {"w0": (8, 3, 1, 1), "w1": (10, 8, 1, 1), "w2": (12, 10, 1, 1)}
    weights |= {"w3": (12, 8, 1, 1), "w4": (6, 12, 1, 1), **head(6)}
    return network(body + HEAD.format("d"), weights, "float[N, 3, 8, 8] x, bool flag")


def merged_equal_biases() -> onnx.ModelProto:
    body = """c1 = Conv(x, w1, b) r1 = Relu(c1) c2 = Conv(r1, w2, b) r2 = Relu(c2)
        c3 = Conv(r2, w3, b) r3 = Relu(c3)"""
    weights: dict[str, Any] = {
        "w1": (8, 3, 1, 1),
        "w2": (8, 8, 1, 1),
        "w3": (8, 8, 1, 1),
        "b": (8,),
        **head(8),
    }
    return network(body + HEAD.format("r3"), weights)


def shared_convolution() -> onnx.ModelProto:
    body = """c1 = Conv(x, w1) s1 = Conv(c1, w2) m = MaxPool<kernel_shape=[2,2], strides=[2,2]>(c1)
        s2 = Conv(m, w2) g1 = GlobalAveragePool(s1) g2 = GlobalAveragePool(s2) a = Add(g1, g2)
        f = Flatten(a) y = Gemm<transB=1>(f, wy, by)"""
    return network(body, {"w1": (8, 3, 1, 1), "w2": (10, 8, 1, 1), **head(10)})


def tied_embeddings() -> onnx.ModelProto:
    body = """e = Gather(table, x) m = MatMul(e, w1) r = Relu(m) d = MatMul(r, w2) s = Add(e, d)
        t = Transpose<perm=[1,0]>(table) y = MatMul(s, t)"""
    weights: dict[str, Any] = {"table": (80, 16), "w1": (16, 24), "w2": (24, 16)}
    return network(body, weights, "int64[N, 5] x", ROWS)


def picked_channels() -> onnx.ModelProto:
    body = """c = Conv(x, w0) r = Relu(c) g = Gather<axis=1>(r, order) d = Conv(g, w1)"""
    order = {"order": np.array([5, 1, 4, 0, 7, 2])}
    return network(
        body + HEAD.format("d"), {"w0": (8, 3, 1, 1), "w1": (6, 6, 1, 1), **order, **head(6)}
    )


def sliced_halves() -> onnx.ModelProto:
    body = """c = Conv(x, w0) a = Slice(c, s0, s1, ax) b = Slice(c, s1, s2, ax) g = Sigmoid(b)
        m = Mul(a, g) d = Conv(m, w1)"""
    places = {"s0": np.array([0]), "s1": np.array([8]), "s2": np.array([2**63 - 1])}
    weights: dict[str, Any] = {"w0": (16, 3, 1, 1), "w1": (6, 8, 1, 1), **head(6)}
    return network(body + HEAD.format("d"), {**weights, **places, "ax": np.array([1])})


def padded_shortcut() -> onnx.ModelProto:
    body = """c0 = Conv(x, w0) c1 = Conv(c0, w1) p = Pad(c0, pads) s = Add(p, c1) d = Conv(s, w2)"""
    pads = {"pads": np.array([0, 2, 0, 0, 0, 2, 0, 0])}
    weights: dict[str, Any] = {
        "w0": (8, 3, 1, 1),
        "w1": (12, 8, 1, 1),
        "w2": (6, 12, 1, 1),
        **head(6),
    }
    return network(body + HEAD.format("d"), {**weights, **pads})


def depth_to_space() -> onnx.ModelProto:
    body = """c = Conv(x, w0, b0) r = Relu(c) u = DepthToSpace<blocksize=2>(r) d = Conv(u, w1)
        v = DepthToSpace<blocksize=2, mode="CRD">(d) y = Conv(v, w2)"""
    weights: dict[str, Any] = {
        "w0": (32, 3, 1, 1),
        "b0": (32,),
        "w1": (16, 8, 1, 1),
        "w2": (2, 4, 1, 1),
    }
    return network(body, weights, output=MAP)


TOPOLOGIES = {
    build.__name__: (build, feed, groups)
    for build, feed, groups in (
        (plain_chain, IMAGES, 2),
        (residual, IMAGES, 2),
        (preactivation_residual, IMAGES, 2),
        (bottleneck, IMAGES, 4),
        (dense_concat, IMAGES, 3),
        (inception_branches, IMAGES, 5),
        (unet_with_skip_and_resize, IMAGES, 3),
        (mobilenet_v2, IMAGES, 2),
        (mobilenet_v3_with_se, IMAGES, 3),
        (channel_shuffle, IMAGES, 4),
        (grouped, IMAGES, 3),
        (transposed_decoder, IMAGES, 3),
        (yolo_c2f, IMAGES, 4),
        (feature_pyramid, IMAGES, 3),
        (flatten_to_gemm, IMAGES, 2),
        (reshape_of_any_batch, IMAGES, 1),
        (unfolded_normalization, IMAGES, 2),
        (nhwc_behind_transposes, {"x": normal(93, 2, 8, 8, 3)}, 3),
        (convnext, IMAGES, 1),
        (attention_of_separate_weights, TOKENS, 1),
        (attention_of_fused_weights, TOKENS, 1),
        (attention_split_in_three, TOKENS, 1),
        (grouped_query_attention, TOKENS, 1),
        (gated_mlp, TOKENS, 1),
        (lstm, SEQUENCE, 1),
        (gru, SEQUENCE, 1),
        (bidirectional_lstm, SEQUENCE, 1),
        (weights_in_if_bodies, {**IMAGES, "flag": np.array(True)}, 4),
        (merged_equal_biases, IMAGES, 3),
        (shared_convolution, IMAGES, 2),
        (tied_embeddings, {"x": np.arange(10).reshape(2, 5)}, 2),
        (picked_channels, IMAGES, 2),
        (sliced_halves, IMAGES, 2),
        (padded_shortcut, IMAGES, 3),
        (depth_to_space, IMAGES, 2),
    )
}
"""Networks by name, each with inputs and the number of groups of channels in it."""
