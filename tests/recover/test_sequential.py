import numpy as np
import pytest

from onnxslim_tk.graph.layers import layers
from onnxslim_tk.graph.model import Model
from onnxslim_tk.measure.observe import fetch
from onnxslim_tk.measure.paired import observe_pairs
from onnxslim_tk.recover import sequential
from onnxslim_tk.recover.sequential import compensating, in_turn, lost_means
from tests.models import model_of, normal, opened
from tests.rows import TOKENS

HEAD = '<ir_version: 8, opset_import: ["": 17]>'


def fork(seed: int = 1) -> Model:
    """``b`` and ``c`` read what ``a`` gives."""
    text = f"""{HEAD} g (float[N, 32] x) => (float[N, 16] y) {{
        a = MatMul(x, u)
        r = Relu(a)
        c = MatMul(r, w)
        b = MatMul(r, v)
        y = Add(b, c)
    }}"""
    shapes = {"u": (32, 24), "v": (24, 16), "w": (24, 16)}
    return opened(
        model_of(text, {k: normal(seed + n, *s) for n, (k, s) in enumerate(shapes.items())})
    )


def test_a_layer_is_seen_behind_what_has_become_of_those_before_it() -> None:
    model, reference = fork(), fork()
    wanted = {layer.id: layer for layer in layers(model)}
    seen = []
    for layer, pair in in_turn(model, reference, [wanted[k] for k in "bca"], [TOKENS], 0):
        seen.append(layer.id)
        if layer.id == "a":
            assert not pair.lost.any()
            layer.set_dense(model, 2 * layer.weight)
        else:
            np.testing.assert_allclose(pair.mean, 2 * pair.reference, rtol=1e-5)
            np.testing.assert_allclose(pair.second, -2 * pair.lost, rtol=1e-4, atol=1e-4)
    assert seen == ["a", "c", "b"]


@pytest.mark.parametrize("room", [0, 40_000, 1 << 29])
def test_the_reference_tells_the_same_whatever_is_held_of_it(
    room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sequential, "_HELD", room)
    feeds = [{"x": normal(k, 100, 32)} for k in range(3)]
    model = fork(7)
    for layer, pair in in_turn(model, fork(), list(layers(model)), feeds, 0):
        (before,) = observe_pairs(
            model, list(fetch(fork(), [layer.input.name], feeds)), [layer], feeds, 0
        ).values()
        np.testing.assert_allclose(pair.reference, before.reference, rtol=1e-5)
        np.testing.assert_allclose(pair.second, before.second, rtol=1e-5)


def test_a_weight_makes_up_for_inputs_that_have_doubled() -> None:
    model, reference = fork(), fork()
    first, second = (next(x for x in layers(model) if x.id == k) for k in "ab")
    first.set_dense(model, 2 * first.weight)
    feeds = [{"x": normal(k, 4000, 32)} for k in range(4)]
    (_, pair), *_ = in_turn(model, reference, [second], feeds, 0)
    matrix = second.matrix()
    for centred in (False, True):
        change = compensating(matrix, pair, centred) - matrix / 2
        assert np.linalg.norm(change) < 0.1 * np.linalg.norm(matrix)
    np.testing.assert_allclose(lost_means(matrix, matrix / 2, pair), 0, atol=1e-4)
