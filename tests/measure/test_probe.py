import numpy as np
import pytest

from onnxslim_tk.errors import SessionError
from onnxslim_tk.graph.layers import layers
from onnxslim_tk.graph.model import Model
from onnxslim_tk.measure.probe import Probe
from tests.models import digest, mlp, model_of, normal, opened, outputs, outputs_of

HEAD = '<ir_version: 8, opset_import: ["": 17]>'
FEEDS = [{"x": normal(k, 2, 32)} for k in range(3)]


def halve(model: Model) -> None:
    layer = list(layers(model))[-1]
    layer.set_dense(model, layer.weight / 2)


def test_error_is_the_squared_distance_of_outputs_over_their_energy() -> None:
    proto = mlp()
    before = np.concatenate([outputs(proto, feed)["y"] for feed in FEEDS]).astype(np.float64)
    changed = opened(mlp())
    halve(changed)
    after = np.concatenate([outputs_of(changed, feed)["y"] for feed in FEEDS])
    expected = np.square(before - after).sum() / np.square(before).sum()
    assert Probe(opened(proto), FEEDS).error(halve) == pytest.approx(expected, rel=1e-5)


def test_nothing_done_is_no_error_and_the_model_stays() -> None:
    model = opened(mlp())
    before = digest(model)
    probe = Probe(model, FEEDS)
    assert probe.error(lambda twin: None) == 0
    assert probe.error(halve) > 0
    assert probe.error(lambda twin: None) == 0
    assert digest(model) == before


def test_what_does_not_run_or_is_not_finite_is_infinitely_wrong() -> None:
    probe = Probe(opened(mlp()), FEEDS)

    def break_shape(model: Model) -> None:
        next(layers(model)).set_dense(model, normal(0, 5, 5))

    def overflow(model: Model) -> None:
        next(layers(model)).set_dense(model, np.full((32, 64), np.inf))

    assert probe.error(break_shape) == np.inf
    assert probe.error(overflow) == np.inf


def test_mask_values_and_silent_outputs_do_not_drown_the_rest() -> None:
    text = f"""{HEAD} g (float[N, 4] x) => (float[N, 4] y, float[N, 4] masked, float[N, 4] none) {{
        y = MatMul(x, w)
        masked = Div(y, gate)
        none = Mul(y, nought)
    }}"""
    constants = {
        "w": normal(0, 4, 4),
        "gate": np.array([1, 1, 1, 0], np.float32),
        "nought": np.float32(0),
    }
    probe = Probe(opened(model_of(text, constants)), [{"x": normal(1, 5, 4)}])
    # A quarter of the energy is lost in two outputs of three.
    assert probe.error(halve) == pytest.approx(0.25 * 2 / 3)


def test_an_output_of_another_shape_counts_as_zeros() -> None:
    text = f"""{HEAD} g (float[N, 4] x) => (int64[A, B] i, float[C] y) {{
        m = MatMul(x, w)
        p = Relu(m)
        i = NonZero(p)
        s = Shape(i)
        one = Constant<value_ints = [1]>()
        n = Gather(s, one)
        f = Cast<to = 1>(n)
        y = Expand(f, n)
    }}"""
    probe = Probe(opened(model_of(text, {"w": normal(0, 4, 4)})), [{"x": normal(1, 5, 4)}])

    def negate(model: Model) -> None:
        layer = next(layers(model))
        layer.set_dense(model, -layer.weight)

    assert probe.measures
    assert probe.error(negate) == 1


def test_without_float_outputs_there_is_nothing_to_measure() -> None:
    text = f"""{HEAD} g (float[N, 4] x) => (int64[N, K] y) {{
        m = MatMul(x, w)
        y = ArgMax<axis = 1>(m)
    }}"""
    probe = Probe(opened(model_of(text, {"w": normal(0, 4, 4)})), [{"x": normal(1, 5, 4)}])
    assert not probe.measures


def test_a_feed_that_does_not_fit_is_an_error() -> None:
    with pytest.raises(SessionError):
        Probe(opened(mlp()), [{"x": normal(0, 2, 31)}])


def classifier(last: str = "p = Softmax<axis=1>(s)") -> Model:
    text = f"""{HEAD} g (float[N, 4] x) => (float[N, 3] y) {{
        s = MatMul(x, w)
        {last}
        y = Identity(p)
    }}"""
    return opened(model_of(text, {"w": normal(0, 4, 3), "one": np.float32(1)}))


def test_probabilities_count_half_and_the_scores_behind_them_half() -> None:
    feeds = [{"x": normal(k, 5, 4)} for k in range(3)]

    def errors(change: np.ndarray) -> list[float]:
        scores = [feed["x"] @ normal(0, 4, 3) for feed in feeds]
        moved = [feed["x"] @ (normal(0, 4, 3) + change) for feed in feeds]
        squares = []
        for form in (softmax, lambda s: s - s.mean(1, keepdims=True)):
            before, after = (np.concatenate([form(s) for s in part]) for part in (scores, moved))
            squares.append(float(np.square(before - after).sum() / np.square(before).sum()))
        probe = Probe(classifier(), feeds)

        def rewrite(model: Model) -> None:
            (layer,) = layers(model)
            layer.set_dense(model, layer.weight + change)

        return [probe.error(rewrite), *squares]

    found, probabilities, scores = errors(0.1 * normal(1, 4, 3))
    assert found == pytest.approx(np.sqrt(probabilities * scores), rel=1e-4)
    # What moves all scores of a sample alike changes nothing.
    assert errors(np.ones((4, 3), np.float32))[0] < 1e-9


def test_a_rewrite_that_hides_the_scores_is_measured_by_probabilities() -> None:
    feeds = [{"x": normal(k, 5, 4)} for k in range(3)]
    hidden = classifier("q = Softmax<axis=1>(s) p = Mul(q, one)")
    assert Probe(classifier(), feeds).difference(hidden) < 1e-9
    assert Probe(hidden, feeds).difference(classifier()) < 1e-9


def softmax(scores: np.ndarray) -> np.ndarray:
    powers = np.exp(scores - scores.max(1, keepdims=True))
    return np.asarray(powers / powers.sum(1, keepdims=True))
