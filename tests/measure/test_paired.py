from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from onnxslim_tk.graph.layers import layers
from onnxslim_tk.graph.model import Model
from onnxslim_tk.measure.observe import fetch
from onnxslim_tk.measure.paired import PairedMoments, observe_pairs
from onnxslim_tk.measure.rows import input_rows
from onnxslim_tk.measure.runtime import Feed
from tests.models import model_of, normal, opened

Array = NDArray[Any]
HEAD = '<ir_version: 8, opset_import: ["": 17]>'


def two_layers(seed: int) -> Model:
    text = f"""{HEAD} g (float[N, 4, 6, 6] x) => (float[N, 5, 6, 6] y) {{
        c = Conv<group=2, pads=[1,1,1,1]>(x, u)
        y = Conv(c, v)
    }}"""
    return opened(
        model_of(text, {"u": normal(seed, 6, 2, 3, 3), "v": normal(seed + 1, 5, 6, 1, 1)})
    )


def pairs(
    model: Model, reference: Model, feeds: Sequence[Feed], seed: int = 0
) -> dict[str, PairedMoments]:
    wanted = list(layers(model))
    before = fetch(reference, [layer.input.name for layer in wanted], feeds)
    return observe_pairs(model, before, wanted, feeds, seed)


@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_moments_are_those_of_the_same_rows_in_both(offset: float) -> None:
    model, reference = two_layers(1), two_layers(5)
    feeds = [{"x": offset + normal(k, 2, 4, 6, 6)} for k in range(3)]
    wanted = list(layers(model))
    found = pairs(model, reference, feeds)
    assert set(found) == {"c", "y"}
    for layer in wanted:
        rows = []
        for each in (model, reference):
            values = [v[layer.input.name] for v in fetch(each, [layer.input.name], feeds)]
            parts = [input_rows(layer, v, 10**9, np.random.default_rng(0)) for v in values]
            rows.append(np.concatenate(parts, axis=1).astype(np.float64))
        now, was = rows
        pair = found[layer.id]
        assert pair.count == now.shape[1]
        np.testing.assert_allclose(pair.mean, now.mean(axis=1), rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(pair.reference, was.mean(axis=1), rtol=1e-4, atol=1e-4)
        scale = float(np.abs(now).max() * max(np.abs(was).max(), np.abs(now).max()))
        for got, left in ((pair.second, now), (pair.lost, was - now)):
            true = np.einsum("gni,gnj->gij", left, now) / now.shape[1]
            np.testing.assert_allclose(got, true, rtol=0, atol=1e-5 * scale)


def test_a_model_beside_itself_has_lost_nothing() -> None:
    model = two_layers(1)
    feeds = [{"x": normal(k, 40, 4, 6, 6)} for k in range(8)]
    for pair in pairs(model, model, feeds, 3).values():
        assert pair.count < 8 * 40 * 36, "rows are drawn"
        np.testing.assert_allclose(pair.mean, pair.reference, rtol=1e-12)
        assert not pair.lost.any()


def test_what_is_not_finite_in_one_of_them_is_not_counted() -> None:
    model = two_layers(1)
    feeds = [{"x": normal(0, 2, 4, 6, 6)}, {"x": np.full((2, 4, 6, 6), np.nan, np.float32)}]
    found = pairs(model, two_layers(5), feeds)
    assert {pair.count for pair in found.values()} == {2 * 36}
    assert pairs(model, model, feeds[1:]) == {}
