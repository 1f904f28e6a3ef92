from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from onnxslim_tk.graph.edit import output_names
from onnxslim_tk.graph.grids import Affine
from onnxslim_tk.graph.layers import layers
from onnxslim_tk.graph.model import Model
from onnxslim_tk.graph.regions import Regions, find_regions
from onnxslim_tk.measure.observe import Statistics, observe
from onnxslim_tk.measure.runtime import Feed
from onnxslim_tk.recover.grid_probe import GridProbe
from onnxslim_tk.recover.ranges import Ranges, choose_grids
from tests.models import digest, model_of, normal, opened, outputs, residual_cnn

HEAD = '<ir_version: 8, opset_import: ["": 17]>'
RANGE = frozenset({"range"})


def two_convs() -> onnx.ModelProto:
    text = f"""{HEAD} g (float[N, 4, 8, 8] x) => (float[N, 4, 8, 8] y) {{
        a = Conv(x, v)
        r = Relu(a)
        y = Conv(r, w)
    }}"""
    return model_of(text, {"v": normal(1, 4, 4, 1, 1), "w": normal(2, 4, 4, 1, 1)})


def feeds_of(count: int = 6) -> Sequence[Feed]:
    return [{"x": normal(50 + k, 1, 4, 8, 8)} for k in range(count)]


def found(model: Model, feeds: Sequence[Feed]) -> tuple[Regions, Statistics]:
    statistics = observe(model, feeds, RANGE, 0)
    nodes = [layer.node for layer in layers(model) if layer.kind == "Conv"]
    return find_regions(model.graph, nodes, output_names(model), statistics.extents), statistics


def rounded(values: NDArray[Any], grid: Affine) -> NDArray[Any]:
    codes = np.clip(np.rint(values / grid.scale) + grid.zero_point, 0, 255)
    return np.asarray((codes - grid.zero_point) * grid.scale, np.float32)


def test_a_probe_measures_what_rounding_to_grids_does() -> None:
    proto, feeds = two_convs(), feeds_of(2)
    model = opened(proto)
    regions, _ = found(model, feeds)
    probe = GridProbe(model, regions, feeds)
    coarse = Affine(np.float32(0.2), 128)
    assert probe.errors({}).tolist() == [0.0, 0.0]
    expected = []
    for feed in feeds:
        before = outputs(proto, feed)["y"]
        after = outputs(proto, {"x": rounded(feed["x"], coarse)})["y"]
        expected.append(np.square(after - before).sum())
    energy = np.mean([np.square(outputs(proto, feed)["y"]).sum() for feed in feeds])
    np.testing.assert_allclose(probe.errors({"x": coarse}), expected / energy, rtol=1e-3)
    assert probe.errors({"x": coarse}, feeds=1).shape == (1,)
    # What an integer operator makes is rounded for a graph's output too.
    exact = float(probe.errors({"y": Affine(np.float32(0.5), 128)})[0])
    before = outputs(proto, feeds[0])["y"]
    noise = np.square(rounded(before, Affine(np.float32(0.5), 128)) - before).sum()
    assert exact == pytest.approx(noise / energy, rel=1e-3)


def test_a_probe_leaves_alone_who_reads_floats() -> None:
    text = f"""{HEAD} g (float[N, 4, 8, 8] x) => (float[N, 4, 8, 8] y, float[N, 4, 8, 8] z) {{
        y = Conv(x, v)
        z = Mul(x, x)
    }}"""
    model, feeds = opened(model_of(text, {"v": normal(1, 4, 4, 1, 1)})), feeds_of(1)
    regions, _ = found(model, feeds)
    coarse = Affine(np.float32(0.5), 128)
    y = outputs(model_of(text, {"v": normal(1, 4, 4, 1, 1)}), feeds[0])["y"]
    x = rounded(feeds[0]["x"], coarse)
    changed = np.einsum("oi,nihw->nohw", normal(1, 4, 4, 1, 1)[:, :, 0, 0], x)
    alone = np.square(changed - y).sum() / np.square(y).sum() / 2
    measured = float(GridProbe(model, regions, feeds).errors({"x": coarse})[0])
    assert measured == pytest.approx(alone, rel=1e-3)


def spiky_feeds(count: int = 40) -> list[dict[str, NDArray[Any]]]:
    """One value in a thousand is an outlier, in a channel that no output depends on."""
    feeds = []
    for k in range(count):
        values = normal(k, 1, 4, 8, 8)
        values[0, 3, k % 8, 3] = 40.0
        feeds.append({"x": values})
    return feeds


def deaf_conv() -> onnx.ModelProto:
    weight = normal(1, 4, 4, 1, 1)
    weight[:, 3] = 0
    text = f"""{HEAD} g (float[N, 4, 8, 8] x) => (float[N, 4, 8, 8] y) {{ y = Conv(x, v) }}"""
    return model_of(text, {"v": weight})


def test_a_range_that_hurts_no_output_is_narrowed() -> None:
    model, feeds = opened(deaf_conv()), spiky_feeds()
    regions, statistics = found(model, feeds)
    before = digest(model)
    chosen = choose_grids(model, regions, statistics, {"x": "auto"}, feeds)
    assert digest(model) == before
    plain = choose_grids(model, regions, statistics, {"x": "auto"}, ())
    assert float(chosen["x"].scale) < 0.75 * float(plain["x"].scale)
    assert chosen["y"] == plain["y"]
    forced = choose_grids(model, regions, statistics, {"x": "minmax", "y": "mse"}, feeds)
    assert float(forced["x"].scale) == pytest.approx((40 - statistics.ranges["x"].low) / 255)


def test_a_choice_that_other_feeds_contradict_is_taken_back() -> None:
    proto, feeds = deaf_conv(), spiky_feeds(32)
    weight = normal(1, 4, 4, 1, 1)
    text = f"""{HEAD} g (float[N, 4, 8, 8] x) => (float[N, 4, 8, 8] y) {{ y = Conv(x, v) }}"""
    proto = model_of(text, {"v": weight})
    for feed in feeds[:16]:
        # The feeds that choose never show what the range is there for.
        feed["x"][0, 3] = np.minimum(feed["x"][0, 3], 4)
    model = opened(proto)
    regions, statistics = found(model, feeds)
    chosen = choose_grids(model, regions, statistics, {"x": "auto"}, feeds)
    assert chosen == choose_grids(model, regions, statistics, {"x": "auto"}, ())
    narrow = choose_grids(model, regions, statistics, {"x": "auto"}, feeds[:16])
    assert float(narrow["x"].scale) < float(chosen["x"].scale)


def test_tensors_that_share_a_grid_get_one() -> None:
    text = f"""{HEAD} g (float[N, 4, 8, 8] x) => (float[N, 4, 4, 4] y) {{
        a = Conv(x, v)
        m = MaxPool<kernel_shape=[2,2], strides=[2,2]>(a)
        y = Conv(m, w)
    }}"""
    weights = {"v": normal(1, 4, 4, 1, 1), "w": normal(2, 4, 4, 1, 1)}
    model, feeds = opened(model_of(text, weights)), feeds_of()
    regions, statistics = found(model, feeds)
    chosen = choose_grids(model, regions, statistics, dict.fromkeys(regions.grids, "auto"), feeds)
    assert set(chosen) == {"x", "a", "m", "y"}
    assert chosen["a"] == chosen["m"]


def test_the_same_feeds_give_the_same_grids() -> None:
    feeds = [{"x": normal(k, 1, 3, 16, 16)} for k in range(20)]
    results = []
    for _ in range(2):
        model = opened(residual_cnn())
        regions, statistics = found(model, feeds)
        methods: dict[str, Ranges] = dict.fromkeys(regions.grids, "auto")
        results.append(choose_grids(model, regions, statistics, methods, feeds))
    assert results[0] == results[1]


def test_scores_behind_probabilities_count_as_much_as_these() -> None:
    text = f"""{HEAD} g (float[N, 4] x) => (float[N, 3] p) {{
        s = MatMul(x, w)
        p = Softmax<axis = 1>(s)
    }}"""
    model = opened(model_of(text, {"w": normal(2, 4, 3)}))
    feeds = [{"x": 3 * normal(60 + k, 5, 4)} for k in range(2)]
    statistics = observe(model, feeds, RANGE, 0)
    nodes = [layer.node for layer in layers(model)]
    regions = find_regions(model.graph, nodes, output_names(model), statistics.extents)
    coarse = Affine(np.float32(0.3), 128)
    error = float(GridProbe(model, regions, feeds[:1]).errors({"x": coarse})[0])

    def both(x: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        scores = x @ normal(2, 4, 3)
        powers = np.exp(scores - scores.max(1, keepdims=True))
        return powers / powers.sum(1, keepdims=True), scores - scores.mean(1, keepdims=True)

    before, after = both(feeds[0]["x"]), both(rounded(feeds[0]["x"], coarse))
    parts = [
        np.square(b - a).sum() / np.square(b).sum() for b, a in zip(before, after, strict=True)
    ]
    assert error == pytest.approx(np.sqrt(parts[0] * parts[1]), rel=1e-3)
