from dataclasses import replace

import numpy as np

from onnxslim_tk.graph.layers import layers
from onnxslim_tk.graph.model import Model
from onnxslim_tk.graph.weight_grid import WeightGrids
from onnxslim_tk.recover.weight_rounding import fed_back_grid
from tests.models import model_of, normal, opened
from tests.rows import TOKENS, seen

HEAD = '<ir_version: 8, opset_import: ["": 17]>'


def product() -> Model:
    text = f"{HEAD} g (float[N, 32] x) => (float[N, 16] y) {{ y = MatMul(x, w) }}"
    return opened(model_of(text, {"w": normal(5, 32, 16)}))


def test_errors_of_int8_weights_make_up_for_each_other() -> None:
    model = product()
    (layer,) = layers(model)
    statistics = seen(model, TOKENS).statistics
    grid = fed_back_grid(layer, statistics, centred=False)
    assert grid is not None
    assert grid.values.dtype == np.int8
    nearest = WeightGrids().of(layer)

    def lost(weight: np.ndarray) -> float:
        return float(np.square(TOKENS["x"] @ (weight - layer.weight)).sum())

    assert lost(grid.dense(layer)) < 0.5 * lost(nearest.dense(layer))


def test_weights_that_samples_do_not_show_have_no_such_grid() -> None:
    model = product()
    (layer,) = layers(model)
    assert fed_back_grid(layer, None, centred=False) is None
    statistics = seen(model, TOKENS).statistics
    assert statistics is not None
    plain = replace(statistics.moments[layer.id], second=None)
    statistics.moments[layer.id] = plain
    assert fed_back_grid(layer, statistics, centred=False) is None


def test_weights_on_a_grid_already_stay() -> None:
    model = product()
    (layer,) = layers(model)
    statistics = seen(model, TOKENS).statistics
    grid = WeightGrids().of(layer)
    layer.set_scaled(model, grid.values, grid.scales)
    (layer,) = layers(model)
    assert fed_back_grid(layer, statistics, centred=False) is None
