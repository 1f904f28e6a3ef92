"""Traps of activations: what sets the range of a grid, and what a grid loses."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from tests.models import model_of, normal, statistics

from .compressed import Array, compressed, sqnr

HEAD = '<ir_version: 8, opset_import: ["": 17]>'
IMAGE = (1, 4, 16, 16)


def images(count: int, first: int = 100) -> list[dict[str, Array]]:
    return [{"x": normal(first + k, *IMAGE)} for k in range(count)]


def network(body: str, shape: str, constants: dict[str, Any]) -> onnx.ModelProto:
    """A trunk from ``x`` to ``r`` of 32 channels, then ``body`` to ``y``."""
    text = f"""{HEAD} g (float[N, 4, 16, 16] x) => (float[{shape}] y) {{
        c0 = Conv<pads=[1, 1, 1, 1]>(x, w0, b0)
        r0 = Relu(c0)
        c1 = Conv<pads=[1, 1, 1, 1]>(r0, w1, b1)
        r = Relu(c1)
        {body}
    }}"""
    trunk = {
        "w0": normal(0, 32, 4, 3, 3, scale=0.2),
        "b0": normal(1, 32, scale=0.3),
        "w1": normal(2, 32, 32, 3, 3, scale=0.08),
        "b1": normal(3, 32, scale=0.3),
    }
    return model_of(text, trunk | constants)


DETECTOR = """
    boxes_raw = Conv(r, wb, bb)
    scores_raw = Conv(r, ws, bs)
    shares = Sigmoid(boxes_raw)
    boxes = Mul(shares, size)
    scores = Sigmoid(scores_raw)
    """
HEADS = {
    "wb": normal(4, 4, 32, 1, 1, scale=0.2),
    "bb": normal(5, 4),
    "ws": normal(6, 12, 32, 1, 1, scale=0.3),
    # Scores are mostly low.
    "bs": np.full(12, -3, np.float32),
    "size": np.float32(320),
}
READERS = {
    "is the output": ("y = Concat<axis=1>(boxes, scores)", {}),
    "goes through an Add": (
        "k = Concat<axis=1>(boxes, scores) y = Add(k, offset)",
        {"offset": np.zeros((1, 16, 1, 1), np.float32)},
    ),
    "is read by a Conv": (
        "k = Concat<axis=1>(boxes, scores) y = Conv<group=16, pads=[1, 1, 1, 1]>(k, each)",
        {"each": np.full((16, 1, 3, 3), 1 / 9, np.float32) + normal(7, 16, 1, 3, 3, scale=0.02)},
    ),
}


@pytest.mark.parametrize("name", READERS)
def test_scores_beside_boxes_keep_their_meaning(name: str, tmp_path: Path) -> None:
    body, more = READERS[name]
    proto = network(DETECTOR + body, "N, 16, 16, 16", HEADS | more)
    outcome = compressed(proto, images(12), tmp_path)
    fresh = images(4, 300)
    assert outcome.runs["QLinearConv"] >= 4
    assert outcome.runs["QLinearConcat"] == 0
    assert outcome.shrunk < 0.45
    for channel in range(16):
        assert outcome.decibels(fresh, places=(slice(None), channel)) > 15
    # What one grid for all would have made of it: not a score left, and a fine figure overall.
    whole = np.concatenate([before["y"] for before, _ in outcome.both(fresh)])
    step = whole.max() / 255
    one_grid = np.rint(whole / step) * step
    assert sqnr(whole, one_grid) > 40
    assert sqnr(whole[:, 4:], one_grid[:, 4:]) < 3


def attention(mask: float) -> onnx.ModelProto:
    """Two heads of attention over ``x (N, S, 32)``, ``mask`` added where ``m`` is 0."""
    text = f"""{HEAD} g (float[N, S, 32] x, int64[N, S] m) => (float[N, S, 32] y) {{
        q0 = MatMul(x, wq) q1 = Add(q0, bq)
        k0 = MatMul(x, wk) k1 = Add(k0, bk)
        v0 = MatMul(x, wv) v1 = Add(v0, bv)
        q2 = Reshape(q1, split) q = Transpose<perm=[0, 2, 1, 3]>(q2)
        k2 = Reshape(k1, split) k = Transpose<perm=[0, 2, 3, 1]>(k2)
        v2 = Reshape(v1, split) v = Transpose<perm=[0, 2, 1, 3]>(v2)
        s0 = MatMul(q, k) s1 = Mul(s0, root)
        m0 = Unsqueeze(m, axes) m1 = Cast<to=1>(m0) m2 = Sub(one, m1) m3 = Mul(m2, huge)
        s2 = Add(s1, m3) p = Softmax<axis=-1>(s2)
        o0 = MatMul(p, v) o1 = Transpose<perm=[0, 2, 1, 3]>(o0) o2 = Reshape(o1, merge)
        o3 = MatMul(o2, wo) o4 = Add(o3, bo) y = Add(o4, x)
    }}"""
    weights = {f"w{c}": normal(k, 32, 32, scale=0.25) for k, c in enumerate("qkvo")}
    biases = {f"b{c}": normal(k + 10, 32, scale=0.2) for k, c in enumerate("qkvo")}
    return model_of(
        text,
        weights
        | biases
        | {
            "split": np.array([0, 0, 2, 16]),
            "merge": np.array([0, 0, 32]),
            "axes": np.array([1, 2]),
            "root": np.float32(0.25),
            "one": np.float32(1),
            "huge": np.float32(mask),
        },
    )


def sentences(count: int, first: int = 100) -> list[dict[str, Array]]:
    """Sequences of other lengths, padded at the end to twelve steps."""
    found = []
    for k in range(count):
        mask = (np.arange(12) < 4 + 8 * (k % 3) // 2).astype(np.int64)[None]
        found.append({"x": normal(first + k, 1, 12, 32), "m": mask})
    return found


@pytest.mark.parametrize("mask", [-1e9, float(np.finfo(np.float32).min)], ids=["1e9", "lowest"])
def test_a_mask_s_huge_constant_sets_no_range(mask: float, tmp_path: Path) -> None:
    outcome = compressed(attention(mask), sentences(12), tmp_path)
    fresh = sentences(6, 300)
    assert outcome.runs["MatMulIntegerToFloat"] == 4
    assert outcome.shrunk < 0.75
    assert outcome.decibels(fresh) > 25
    # What is masked reaches nothing: other values there leave the steps before them as they were.
    feed = fresh[0]
    other = {"x": feed["x"].copy(), "m": feed["m"]}
    length = int(feed["m"].sum())
    other["x"][:, length:] = 3.0
    (_, first), (_, second) = outcome.both([feed, other])
    assert sqnr(first["y"][:, :length], second["y"][:, :length]) > 60


HARD = {
    "HardSwish": "h = HardSwish(c)",
    "HardSigmoid and Mul": "s = HardSigmoid<alpha=0.16666667, beta=0.5>(c) h = Mul(c, s)",
    "spelled out": "t = Add(c, three) d = Clip(t, zero, six) m = Mul(c, d) h = Div(m, six)",
    "spelled out, divided first": (
        "t = Add(c, three) d = Clip(t, zero, six) s = Div(d, six) h = Mul(c, s)"
    ),
    "a gate of squeeze and excitation": (
        "p = GlobalAveragePool(c) e = Conv(p, wg) s = HardSigmoid(e) h = Mul(c, s)"
    ),
}


@pytest.mark.parametrize("name", HARD)
def test_hard_activations_are_no_float_islands(name: str, tmp_path: Path) -> None:
    body = f"c = Conv(r, w2, b2) {HARD[name]} y = Conv(h, w3)"
    constants = {
        "w2": normal(10, 32, 32, 1, 1, scale=0.3),
        "b2": normal(11, 32, scale=0.5),
        "w3": normal(12, 16, 32, 1, 1, scale=0.3),
        "three": np.float32(3),
        "six": np.float32(6),
        "zero": np.float32(0),
        "wg": normal(13, 32, 32, 1, 1, scale=0.4),
    }
    outcome = compressed(network(body, "N, 16, 16, 16", constants), images(12), tmp_path)
    runs = outcome.runs
    assert runs["QLinearConv"] == (5 if "squeeze" in name else 4)
    # In at one end, out at the other; all between is in integers.
    assert (runs["QuantizeLinear"], runs["DequantizeLinear"]) == (1, 1)
    assert runs["QLinearMul"] == 1
    # The one Clip is of codes.
    assert not {"HardSwish", "HardSigmoid", "Mul", "Add", "Div"} & set(runs)
    assert outcome.decibels(images(4, 300)) > 20


def test_a_normalization_behind_relu_runs_in_integers(tmp_path: Path) -> None:
    body = "n = BatchNormalization(r, ns, nb, nm, nv) y = Conv(n, w2)"
    constants = {"w2": normal(10, 16, 32, 3, 3, scale=0.1), **statistics(20, 32, "n")}
    outcome = compressed(network(body, "N, 16, 14, 14", constants), images(12), tmp_path)
    runs = outcome.runs
    assert runs["QLinearConv"] == 3
    assert runs["BatchNormalization"] == 0
    assert outcome.decibels(images(4, 300)) > 20


@pytest.mark.parametrize("value", [0.0, 1.5], ids=["zeros", "another value"])
def test_chains_of_pads_are_right_at_the_edges(value: float, tmp_path: Path) -> None:
    body = """
        p0 = Pad(r, first, value)
        p1 = Pad(p0, second, value)
        y = Conv<kernel_shape=[3, 3]>(p1, w2)"""
    constants = {
        "first": np.array([0, 0, 1, 0, 0, 0, 1, 0]),
        "second": np.array([0, 0, 0, 1, 0, 0, 0, 1]),
        "value": np.float32(value),
        "w2": normal(10, 16, 32, 3, 3, scale=0.1),
    }
    outcome = compressed(network(body, "N, 16, 16, 16", constants), images(12), tmp_path)
    assert outcome.runs["QLinearConv"] == 3
    if value == 0:
        assert outcome.runs["Pad"] == 0
    fresh = images(4, 300)
    assert outcome.decibels(fresh) > 20
    for edge in (0, -1):
        assert outcome.decibels(fresh, places=(..., edge)) > 18
        assert outcome.decibels(fresh, places=(..., edge, slice(None))) > 18


TRANSPOSED: dict[str, tuple[str, int, dict[str, int]]] = {
    "in blocks": ("strides=[2, 2]", 2, {"QLinearConv": 4, "ConvTranspose": 0}),
    "overlapping": (
        "strides=[2, 2], pads=[1, 1, 1, 1], output_padding=[1, 1]",
        3,
        {"QLinearConv": 3, "ConvTranspose": 1},
    ),
}


@pytest.mark.parametrize("name", TRANSPOSED)
def test_transposed_convolutions_compute_what_they_did(name: str, tmp_path: Path) -> None:
    """In integers where blocks don't overlap, else in float between integers."""
    attributes, size, kernels = TRANSPOSED[name]
    body = f"u = ConvTranspose<{attributes}>(r, wt, bt) v = Relu(u) y = Conv(v, w2)"
    constants = {
        "wt": normal(10, 32, 16, size, size, scale=0.15),
        "bt": normal(11, 16, scale=0.3),
        "w2": normal(12, 16, 16, 1, 1, scale=0.3),
    }
    outcome = compressed(network(body, "N, 16, 32, 32", constants), images(12), tmp_path)
    assert {kernel: outcome.runs[kernel] for kernel in kernels} == kernels
    assert outcome.shrunk < 0.4
    assert outcome.decibels(images(4, 300)) > 20
