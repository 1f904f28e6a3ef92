from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from onnxslim_tk.measure.moments import Moments
from onnxslim_tk.measure.observe import observe
from onnxslim_tk.measure.runtime import Feed
from tests.models import model_of, normal, opened, outputs

Array = NDArray[Any]
HEAD = '<ir_version: 8, opset_import: ["": 17]>'
BOTH = frozenset({"mean", "covariance"})
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def moments(text: str, weights: dict[str, Array], feeds: list[Feed]) -> dict[str, Moments]:
    return observe(opened(model_of(f"{HEAD} {text}", weights)), feeds, BOTH, seed=0).moments


def second(found: Moments) -> NDArray[np.float64]:
    assert found.second is not None
    return found.second


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("op", GATES)
def test_a_recurrent_weight_meets_the_states_before_each_step(op: str, direction: str) -> None:
    ways = 2 if direction == "bidirectional" else 1
    text = f"""g (float[S, N, 6] x, float[D, N, 8] h) =>
            (float[A, B, C, E] y, float[F, G, K] last) {{
        y, last = {op}<hidden_size=8, direction="{direction}">(x, w, r, , , h)
    }}"""
    shapes = {"w": (ways, GATES[op] * 8, 6), "r": (ways, GATES[op] * 8, 8)}
    weights = {n: normal(k, *shape, scale=0.5) for k, (n, shape) in enumerate(shapes.items())}
    proto = model_of(f"{HEAD} {text}", weights)
    x, h = normal(3, 7, 2, 6), normal(4, ways, 2, 8)

    def last(part: Array, way: int) -> Array:
        return np.asarray(outputs(proto, {"x": part, "h": h})["last"][way])

    expected = []
    for way in range(ways):
        backward = way == 1 or direction == "reverse"
        parts = [x[t:] if backward else x[:t] for t in range(1, 7)]
        expected.append(np.concatenate([h[way], *(last(part, way) for part in parts)]))
    rows = np.stack(expected).astype(np.float64)
    found = moments(text, weights, [{"x": x, "h": h}])["y:R"]
    assert found.count == 14
    np.testing.assert_allclose(found.mean, rows.mean(1), atol=1e-5)
    true = np.einsum("gni,gnj->gij", rows, rows) / 14
    np.testing.assert_allclose(second(found), true, atol=1e-5)


def test_states_that_a_node_does_not_give_stay_unknown() -> None:
    text = "g (float[S, N, 6] x) => (float[A, B, C] y) { , y = GRU<hidden_size=8>(x, w, r) }"
    proto = model_of(
        f"{HEAD} {text.replace('{ ,', '{ unread,')}",
        {"w": normal(0, 1, 24, 6), "r": normal(1, 1, 24, 8)},
    )
    proto.graph.node[0].output[0] = ""
    found = observe(opened(proto), [{"x": normal(2, 5, 1, 6)}], BOTH, seed=0).moments
    assert set(found) == {"y:W"}


BRANCHES = """g (float[N, 8] x, bool c, bool d) => (float[N, 8] y) {
    s = Relu(x)
    y = If(c)<
        then_branch = yes () => (float[N, 8] p) {
            p = If(d)<
                then_branch = deep () => (float[N, 8] t) { a = Neg(s) t = MatMul(a, w) },
                else_branch = flat () => (float[N, 8] u) { u = MatMul(s, v) }
            >
        },
        else_branch = no () => (float[N, 8] n) { a = Exp(s) n = MatMul(a, z) }
    >
}"""
DEEP, FLAT = "y/then_branch/p/then_branch/t", "y/then_branch/p/else_branch/u"
OTHER = "y/else_branch/n"


def case(seed: int, c: bool, d: bool) -> Feed:
    return {"x": normal(seed, 3 + seed, 8), "c": np.array(c), "d": np.array(d)}


def test_branches_show_what_their_layers_read_where_they_are_taken() -> None:
    weights = {"w": normal(0, 8, 8), "v": normal(1, 8, 8), "z": normal(2, 8, 8)}
    feeds = [case(0, True, True), case(1, True, False), case(2, True, True)]
    found = moments(BRANCHES, weights, feeds)
    assert set(found) == {DEEP, FLAT}
    read = [np.maximum(feed["x"], 0).astype(np.float64) for feed in feeds]
    for key, rows in ((DEEP, -np.concatenate([read[0], read[2]])), (FLAT, read[1])):
        assert found[key].count == len(rows)
        np.testing.assert_allclose(found[key].mean[0], rows.mean(0), atol=1e-6)
        np.testing.assert_allclose(second(found[key])[0], rows.T @ rows / len(rows), atol=1e-6)


def test_equal_weights_of_branches_have_one_set_of_moments() -> None:
    one = normal(0, 8, 8)
    weights = {"w": one, "v": one.copy(), "z": one.copy()}
    feeds = [case(0, True, True), case(1, False, False)]
    found = moments(BRANCHES, weights, feeds)
    first, last = (np.maximum(feed["x"], 0).astype(np.float64) for feed in feeds)
    rows = np.concatenate([-first, np.exp(last)])
    assert set(found) == {DEEP, FLAT, OTHER}
    for key in found:
        assert found[key].count == len(rows)
        np.testing.assert_allclose(found[key].mean[0], rows.mean(0), atol=1e-5)
        np.testing.assert_allclose(second(found[key])[0], rows.T @ rows / len(rows), atol=1e-4)


def test_bodies_that_run_many_times_are_not_looked_into() -> None:
    text = """g (float[N, 8] x, int64 n, bool c) => (float[N, 8] y) {
        y = Loop(n, c, x)<
            body = b (int64 i, bool go, float[N, 8] s) => (bool on, float[N, 8] t) {
                on = Identity(go) t = MatMul(s, w)
            }
        >
    }"""
    feed = {"x": normal(1, 3, 8), "n": np.array(2), "c": np.array(True)}
    assert moments(text, {"w": normal(0, 8, 8)}, [feed]) == {}
