from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from onnxslim_tk.errors import SessionError
from onnxslim_tk.graph.layers import layers
from onnxslim_tk.measure.observe import (
    Statistics,
    fetch,
    inner_tensors,
    observe,
    observed_shapes,
    with_outputs,
)
from onnxslim_tk.measure.rows import input_rows
from onnxslim_tk.measure.runtime import Session
from tests.models import chain_cnn, depthwise_cnn, mlp, model_of, normal, opened

HEAD = '<ir_version: 8, opset_import: ["": 17]>'
ALL = frozenset({"mean", "covariance", "range"})
Array = NDArray[Any]


def test_moments_are_those_of_all_rows() -> None:
    feeds = [{"x": 1 + normal(k, 2, 4, 6, 6)} for k in range(3)]
    text = f"""{HEAD} g (float[N, 4, 6, 6] x) => (float[N, 5] y) {{
        c = Conv<group=2, pads=[1,1,1,1]>(x, w)
        t = ConvTranspose<group=2>(c, u)
        p = GlobalAveragePool(t)
        f = Flatten(p)
        y = Gemm<transB=1>(f, v)
    }}"""
    weights = {"w": normal(0, 6, 2, 3, 3), "u": normal(1, 6, 4, 2, 2), "v": normal(2, 5, 8)}
    model = opened(model_of(text, weights))
    found = observe(model, feeds, ALL, seed=0)
    assert set(found.moments) == {"c", "t", "y"}
    for layer in layers(model):
        rng = np.random.default_rng(0)
        values = [v[layer.input.name] for v in fetch(model, [layer.input.name], feeds)]
        rows = np.concatenate([input_rows(layer, v, 10**9, rng) for v in values], axis=1)
        wide = rows.astype(np.float64)
        moments = found.moments[layer.id]
        assert moments.count == wide.shape[1]
        np.testing.assert_allclose(moments.mean, wide.mean(axis=1), rtol=1e-5)
        second = np.einsum("gni,gnj->gij", wide, wide) / wide.shape[1]
        assert moments.second is not None
        np.testing.assert_allclose(moments.second, second, rtol=1e-4, atol=1e-5)


def test_only_what_is_wanted_is_kept() -> None:
    model, feeds = opened(mlp()), [{"x": normal(0, 4, 32)}]
    means = observe(model, feeds, frozenset({"mean"}), seed=0)
    assert means.ranges == {}
    assert all(m.second is None and m.mean.shape[0] == 1 for m in means.moments.values())
    ranges = observe(model, feeds, frozenset({"range"}), seed=0)
    assert ranges.moments == {}
    assert set(ranges.ranges) == {"x", "m1", "a1", "r1", "g2", "r2", "y"}
    nothing = observe(model, feeds, frozenset(), seed=0)
    assert (nothing.moments, nothing.ranges) == ({}, {})
    assert nothing.shapes["r1"] == (4, 64)


def test_ranges_keep_the_extremes_of_big_tensors_exactly() -> None:
    text = f"{HEAD} g (float[N, M] x) => (float[N, M] y) {{ y = Mul(x, two) }}"
    model = opened(model_of(text, {"two": np.float32(2)}))
    feeds = [{"x": normal(k, 300, 301)} for k in range(2)]
    feeds[0]["x"][17, 5], feeds[1]["x"][299, 300] = 123.456, -77.7
    found = observe(model, feeds, ALL, seed=0).ranges
    low, high = float(np.float32(-77.7)), float(np.float32(123.456))
    assert (found["x"].low, found["x"].high) == (low, high)
    assert (found["y"].low, found["y"].high) == (2 * low, 2 * high)
    assert 10_000 < found["x"].total < 200_000


def figures(found: Statistics) -> list[Any]:
    moments: list[Any] = []
    for key, m in found.moments.items():
        assert m.second is not None
        moments.append((key, m.count, m.mean.tobytes(), m.second.tobytes()))
    ranges = [(k, h.total, h.low, h.high, h.counts.tobytes()) for k, h in found.ranges.items()]
    return [moments, ranges, found.shapes]


def test_is_deterministic_and_draws_by_the_seed() -> None:
    model = opened(depthwise_cnn())
    feeds = [{"x": normal(k, 160, 3, 16, 16)} for k in range(2)]
    first, second = (observe(model, feeds, ALL, seed=5) for _ in range(2))
    assert figures(first) == figures(second)
    assert first.moments["c1"].count < 160 * 64
    other = observe(model, feeds, ALL, seed=6)
    assert other.moments["c1"].mean.tobytes() != first.moments["c1"].mean.tobytes()


def test_memory_for_rows_does_not_grow_with_the_feeds() -> None:
    model = opened(mlp())
    feeds = [{"x": normal(k, 4000, 32)} for k in range(5)]
    assert observe(model, feeds, ALL, seed=0).moments["m1"].count <= 8000


def test_sees_no_ranges_of_whole_numbers_and_no_moments_of_indices() -> None:
    text = f"""{HEAD} g (int64[N, T] ids) => (float[N, T, 8] y) {{
        e = Gather(table, ids)
        y = MatMul(e, w)
    }}"""
    model = opened(model_of(text, {"table": normal(0, 90, 16), "w": normal(1, 16, 8)}))
    found = observe(model, [{"ids": np.array([[3, 4, 5]])}], ALL, seed=0)
    assert set(found.ranges) == {"e", "y"}
    assert set(found.moments) == {"y"}
    assert found.shapes == {"ids": (1, 3), "e": (1, 3, 16), "y": (1, 3, 8)}


def test_what_is_not_finite_is_not_counted() -> None:
    text = f"{HEAD} g (float[N, 8] x) => (float[N, 8] y) {{ m = Log(x) y = MatMul(m, w) }}"
    model = opened(model_of(text, {"w": normal(0, 8, 8)}))
    feeds = [{"x": np.full((2, 8), value, np.float32)} for value in (0, 1, 2)]
    found = observe(model, feeds, ALL, seed=0)
    assert found.moments["y"].count == 4
    assert (found.ranges["m"].low, found.ranges["m"].high) == (0, float(np.log(np.float32(2))))


def test_layers_that_read_inputs_or_constants_and_layers_in_bodies() -> None:
    text = f"""{HEAD} g (float[N, 8] x, bool c) => (float[A, B] y) {{
        direct = MatMul(x, w)
        k = Identity(fixed)
        constant = MatMul(k, w)
        s = Add(direct, constant)
        y = If(c)<
            then_branch = yes () => (float[A, B] p) {{ p = MatMul(s, w) }},
            else_branch = no () => (float[A, B] n) {{ n = Neg(s) }}
        >
    }}"""
    model = opened(model_of(text, {"w": normal(0, 8, 8), "fixed": normal(1, 1, 8)}))
    assert inner_tensors(model) == ["direct", "constant", "s", "y"]
    found = observe(model, [{"x": normal(2, 3, 8), "c": np.array(True)}], ALL, seed=0)
    assert set(found.moments) == {"direct", "y/then_branch/p"}
    assert found.moments["direct"].count == 3


def test_sequences_between_tensors_are_passed_over() -> None:
    text = f"""{HEAD} g (float[4, 8] x) => (float[2, 8] y) {{
        parts = SplitToSequence<axis = 0>(x, two)
        first = SequenceAt(parts, zero)
        y = MatMul(first, w)
    }}"""
    constants = {"two": np.array([2, 2]), "zero": np.array(0), "w": normal(0, 8, 8)}
    model = opened(model_of(text, constants))
    feed = {"x": normal(1, 4, 8)}
    assert observed_shapes(model, feed) == {"x": (4, 8), "first": (2, 8), "y": (2, 8)}
    found = observe(model, [feed], ALL, seed=0)
    assert found.moments["y"].count == 2
    assert set(found.ranges) == {"x", "first", "y"}


def test_a_prefix_holds_no_more_than_it_needs() -> None:
    model = opened(chain_cnn())
    data = with_outputs(model, ["r1"])
    proto = data.proto()
    assert [node.op_type for node in proto.graph.node] == ["Conv", "BatchNormalization", "Relu"]
    assert {t.name for t in proto.graph.initializer} == {"w1", "as", "ab", "am", "av"}
    x = normal(0, 1, 3, 16, 16)
    expected = Session(with_outputs(model, ["y", "r1"])).run({"x": x})["r1"]
    np.testing.assert_array_equal(Session(data).run({"x": x})["r1"], expected)


def test_fetches_inputs_and_inner_tensors_alike() -> None:
    model, x = opened(mlp()), normal(0, 2, 32)
    (values,) = fetch(model, ["x", "r2", "x"], [{"x": x}])
    assert set(values) == {"x", "r2"}
    assert values["x"] is x
    assert (values["r2"] >= 0).all()
    assert [list(v) for v in fetch(model, ["x"], [{"x": x}] * 2)] == [["x"]] * 2


def test_progress_ends_where_it_says() -> None:
    seen: list[tuple[int, int]] = []
    feeds = [{"x": normal(k, 2, 32)} for k in range(3)]
    observe(opened(mlp()), feeds, ALL, 0, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_a_feed_that_does_not_fit_is_an_error() -> None:
    with pytest.raises(SessionError):
        observe(opened(mlp()), [{"x": normal(0, 2, 31)}], ALL, seed=0)


def test_channels_are_those_of_all_feeds() -> None:
    text = f"""{HEAD} g (float[N, 4, 6, 6] x) => (float[N, 4, 6, 5] y) {{
        c = Conv<pads=[1,1,1,1]>(x, w)
        y = MatMul(c, v)
    }}"""
    model = opened(model_of(text, {"w": normal(0, 4, 4, 3, 3), "v": normal(1, 6, 5)}))
    feeds = [{"x": normal(k, 2, 4, 6, 6)} for k in range(3)]
    found = observe(model, feeds, frozenset({"channels"}), seed=0).channels
    assert set(found) == {"x", "c"}
    for name, axis in (("x", 1), ("c", 3)):
        values = np.concatenate([v[name] for v in fetch(model, [name], feeds)])
        others = tuple(k for k in range(4) if k != axis)
        np.testing.assert_array_equal(found[name].peak, np.abs(values).max(axis=others))
        squares = np.square(values.astype(np.float64)).mean(axis=others)
        np.testing.assert_allclose(found[name].square, squares, rtol=1e-5)


def test_a_small_spread_about_a_big_mean_is_not_lost() -> None:
    text = f"{HEAD} g (float[N, 6] x) => (float[N, 5] y) {{ y = MatMul(x, v) }}"
    model = opened(model_of(text, {"v": normal(1, 6, 5)}))
    feeds = [{"x": (3000 + normal(k, 400, 6)).astype(np.float32)} for k in range(3)]
    moments = observe(model, feeds, frozenset({"covariance"}), seed=0).moments["y"]
    rows = np.concatenate([feed["x"] for feed in feeds]).astype(np.float64)
    assert moments.second is not None
    centred = moments.second[0] - np.outer(moments.mean[0], moments.mean[0])
    np.testing.assert_allclose(centred, np.cov(rows.T, bias=True), atol=1e-4)


def test_covariances_of_many_inputs_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    text = f"""{HEAD} g (float[N, 6] x) => (float[N, 4] y) {{
        h = MatMul(x, v)
        y = MatMul(h, w)
    }}"""
    model = opened(model_of(text, {"v": normal(1, 6, 5), "w": normal(2, 5, 4)}))
    feeds = [{"x": normal(3, 40, 6)}]
    wanted = frozenset({"mean", "covariance"})

    def kept() -> dict[str, bool]:
        moments = observe(model, feeds, wanted, seed=0).moments
        return {name: found.second is not None for name, found in moments.items()}

    assert kept() == {"h": True, "y": True}
    monkeypatch.setattr("onnxslim_tk.measure.moments._WIDEST_COVARIANCE", 5)
    assert kept() == {"h": False, "y": True}
    monkeypatch.setattr("onnxslim_tk.measure.moments._COVARIANCE_BYTES", 100)
    assert kept() == {"h": False, "y": False}


def test_weights_that_are_decoded_from_constants_are_no_activations() -> None:
    text = """<ir_version: 8, opset_import: ["": 17]>
        g (float[N, 64] x) => (float[N, 64] y) {
            c = Cast<to = 1>(codes)
            w = Mul(c, s)
            t = Transpose(w)
            y = MatMul(x, t)
        }"""
    codes = np.ones((64, 64), np.int8)
    model = opened(model_of(text, {"codes": codes, "s": np.ones((1, 64), np.float32)}))
    assert inner_tensors(model) == ["y"]
