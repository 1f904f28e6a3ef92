import numpy as np
import pytest

from onnxslim_tk.graph.layers import layers
from onnxslim_tk.graph.model import Model
from onnxslim_tk.measure.metrics import METRICS
from onnxslim_tk.measure.observe import observe, observed_shapes
from onnxslim_tk.measure.samples import Samples
from onnxslim_tk.measure.validate import (
    Validation,
    faithfulness,
    layer_errors,
    runs_in_integers,
    takes_too_much,
    validate_files,
)
from onnxslim_tk.passes.quantize import Quantize
from onnxslim_tk.plan.proposal import Context, Proposal
from tests.models import SLOW_FLOATS, chain_cnn, mlp, normal, opened, residual_cnn, to_proto

FEEDS = [{"x": normal(k, 1, 3, 16, 16)} for k in range(4)]


def quantized(activations: bool = True) -> Model:
    model = opened(residual_cnn())
    statistics = observe(model, FEEDS, frozenset({"mean", "range"}), 0)
    context = Context(SLOW_FLOATS, statistics=statistics, shapes=statistics.shapes)
    method = Quantize(activations=activations)
    rows = [r for r in method.propose(model, context) if isinstance(r, Proposal)]
    best = {row.targets: row for row in reversed(rows)}
    method.apply(model, list(best.values()), context)
    return model


def validated(result: Model) -> Validation:
    original = opened(residual_cnn())
    data = to_proto(original).SerializeToString(), to_proto(result).SerializeToString()
    shapes = observed_shapes(original, FEEDS[0]), observed_shapes(result, FEEDS[0])
    steps: list[tuple[str, int, int]] = []
    found = validate_files(
        (data[0], original),
        (data[1], result),
        tuple(FEEDS),
        None,
        shapes,
        lambda *step: steps.append(step),
    )
    assert steps[-1][1] == steps[-1][2]
    return found


def test_integer_kernels_meant_are_counted_beside_those_that_formed() -> None:
    result = quantized()
    found = validated(result)
    assert found.integer_meant == found.integer_formed == sum(found.kernels.values()) == 6
    assert all(runs_in_integers(layer) for layer in layers(result))
    plain = validated(opened(residual_cnn()))
    assert (plain.integer_meant, plain.integer_formed) == (0, 0)
    assert plain.original == plain.result
    assert found.result.file_bytes < found.original.file_bytes / 2
    # Filled up input channels count.
    assert found.result.macs == pytest.approx(found.original.macs, rel=0.02)
    assert found.latency is not None


def test_weights_behind_a_scale_alone_are_no_integers() -> None:
    assert validated(quantized(activations=False)).integer_meant == 0


def test_layer_errors_are_those_of_the_layers_that_changed() -> None:
    original, result = opened(mlp()), opened(mlp())
    third = list(layers(result))[2]
    third.set_dense(result, third.weight * 1.1)
    feeds = tuple({"x": normal(k, 3, 32)} for k in range(2))
    errors = layer_errors(original, result, feeds)
    assert [error.layer for error in errors] == ["m1", "g2", "y"]
    assert [error.kind for error in errors] == ["MatMul", "Gemm", "Gemm"]
    assert [error.sqnr_db for error in errors[:2]] == [200, 200]
    assert 5 < errors[2].sqnr_db < 40
    assert layer_errors(original, result, ()) == ()


def test_absorbed_activations_are_compared_where_they_stand() -> None:
    errors = layer_errors(opened(residual_cnn()), quantized(), tuple(FEEDS[:2]))
    assert {e.layer for e in errors} == {f"c{k}" for k in range(5)} | {"y"}
    assert min(error.sqnr_db for error in errors) > 20


def test_a_layer_that_has_another_shape_now_does_not_matter() -> None:
    result = opened(mlp())
    first, second, *_ = layers(result)
    narrow = np.ascontiguousarray(first.weight[:, :32])
    first.set_dense(result, narrow)
    bias = first.bias(set())
    assert bias is not None
    bias.values = bias.values[:32]
    second.set_dense(result, second.weight[:32])
    errors = layer_errors(opened(mlp()), result, ({"x": normal(0, 3, 32)},))
    assert [error.layer for error in errors] == ["g2", "y"]


def test_faithfulness_scores_a_metric_only_with_labels() -> None:
    data = chain_cnn().SerializeToString()
    feeds = tuple(FEEDS)
    accuracy = METRICS["accuracy"]
    plain = faithfulness(data, data, Samples(feeds), accuracy, {}, 0)
    assert (plain.metric, plain.drop) == (None, None)
    assert plain.outputs[0].sqnr_db == 200
    labels = np.zeros(4, np.int64)
    scored = faithfulness(data, data, Samples(feeds, labels), accuracy, {"y": "classes"}, 0)
    assert scored.metric == "accuracy"
    assert scored.drop is not None
    assert scored.drop.drop == 0
    assert scored.samples == 4
    assert scored.outputs[0].kind == "classes"


@pytest.mark.parametrize("scale", [0.9, 0.5])
def test_faithfulness_sees_the_difference(scale: float) -> None:
    changed = opened(mlp())
    layer = list(layers(changed))[-1]
    layer.set_dense(changed, layer.weight * scale)
    samples = Samples(tuple({"x": normal(k, 1, 32)} for k in range(5)))
    data = mlp().SerializeToString(), to_proto(changed).SerializeToString()
    found = faithfulness(*data, samples, None, {}, 0).outputs[0]
    assert 0 < found.sqnr_db < 30


def test_a_big_result_that_decodes_to_far_more_than_the_original_is_not_timed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = mlp().SerializeToString()
    result = opened(mlp())
    for layer in list(layers(result)):
        layer.set_scaled(result, np.ones(layer.shape, np.int8), np.ones(layer.channels, np.float32))
    assert not takes_too_much(data, result)
    monkeypatch.setattr("onnxslim_tk.measure.runtime._BIG", 1)
    assert takes_too_much(data, result)
    assert not takes_too_much(data, opened(mlp()))
    original = opened(mlp())
    feeds = ({"x": normal(0, 2, 32)},)
    written = to_proto(result).SerializeToString()
    found = validate_files(
        (data, original), (written, result), feeds, None, ({}, {}), lambda *_: None
    )
    assert found.latency is None
    assert found.layers
