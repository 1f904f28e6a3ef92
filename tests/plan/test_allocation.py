from collections.abc import Mapping

import pytest

from onnxslim_tk.graph.layers import layers
from onnxslim_tk.plan.allocation import Figures, Ladder, allocate
from onnxslim_tk.plan.targets import ONNXRUNTIME_CPU
from tests.models import depthwise_cnn, opened

SIZES = {"a": 100.0, "b": 100.0}


def figure(name: str, gone: Mapping[int, float]) -> float:
    left = SIZES[name]
    for share in gone.values():
        left *= 1 - share
    return left


def ladder(name: str, *errors: float) -> Ladder:
    steps = range(len(errors) + 1)
    return Ladder([0.0, *errors], [{name: {0: k / 4}} for k in steps])


def test_what_costs_least_for_what_it_saves_goes_first() -> None:
    ladders = [ladder("a", 5.0, 9.0, 12.0), ladder("b", 1.0, 2.0, 8.0)]
    assert allocate(ladders, figure, ["a", "b"], 0.75) == [0, 2]
    assert allocate(ladders, figure, ["a", "b"], 0.6) == [2, 2]


def test_a_step_that_pays_only_with_the_next_is_jumped_over() -> None:
    ladders = [ladder("a", 9.0, 1.0, 30.0), ladder("b", 4.0, 8.0, 12.0)]
    assert allocate(ladders, figure, ["a", "b"], 0.75) == [2, 0]


def test_what_can_not_be_met_is_met_as_far_as_it_can_be() -> None:
    assert allocate([ladder("a", 1.0, 2.0, 3.0)], figure, ["a", "b"], 0.1) == [3]


def test_figures_of_layers_fall_with_what_they_read_and_make() -> None:
    found = list(layers(opened(depthwise_cnn())))
    shapes = {layer.input.name: (1, 16, 8, 8) for layer in found}
    shapes |= {layer.output.name: (1, 16, 8, 8) for layer in found}
    figures = Figures(found, shapes, ONNXRUNTIME_CPU)
    deep = next(layer for layer in found if layer.groups > 1)
    plain = next(layer for layer in found if layer.kind == "Conv" and layer.groups == 1)
    assert figures.macs(plain.id, {0: 0.5, 1: 0.5}) == figures.macs(plain.id, {}) / 4
    assert figures.parameters(deep.id, {0: 0.25}) == deep.size * 0.75
    wide = next(layer for layer in found if layer.channels == 32)
    assert figures.latency(wide.id, {0: 0.5}) < figures.latency(wide.id, {})
    assert figures.macs(plain.id, {}) == pytest.approx(plain.macs(shapes))
