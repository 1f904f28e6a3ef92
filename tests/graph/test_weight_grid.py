import gc

import numpy as np
import pytest

from onnxslim_tk.graph import weight_grid as module
from onnxslim_tk.graph.layers import layers
from onnxslim_tk.graph.weight_grid import WeightGrids
from onnxslim_tk.kernels.codebook import storable_scales
from onnxslim_tk.kernels.rounding import symmetric_scales
from tests.models import mlp, normal, opened


def test_scales_are_searched_once_for_a_weight_and_anew_for_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[int] = []

    def counted(flat: np.ndarray, bits: int) -> np.ndarray:
        calls.append(bits)
        return symmetric_scales(flat, bits)

    monkeypatch.setattr(module, "symmetric_scales", counted)
    model = opened(mlp())
    layer, grids = next(iter(layers(model))), WeightGrids()
    first = grids.of(layer)
    first.scales[:] = 0
    np.testing.assert_array_equal(grids.of(layer).scales, grids.of(layer).scales)
    assert grids.of(layer).scales.all()
    assert calls == [7]
    grids.of(layer, 6)
    layer.set_dense(model, normal(3, *layer.shape))
    changed = next(iter(layers(model)))
    expected = storable_scales(symmetric_scales(changed.by_channel(changed.weight)))
    np.testing.assert_array_equal(grids.of(changed).scales, expected)
    assert calls == [7, 6, 7]


def test_nothing_is_remembered_of_weights_that_are_gone() -> None:
    grids = WeightGrids()
    model = opened(mlp())
    for layer in layers(model):
        grids.of(layer)
    assert len(grids) > 0
    del model, layer
    gc.collect()
    assert len(grids) == 0
