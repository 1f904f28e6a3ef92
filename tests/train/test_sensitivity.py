from pathlib import Path

import numpy as np
import onnx
import pytest

torch = pytest.importorskip("torch", reason="the extra train isn't installed")

from onnxslim_tk import Budget, Options, RecipeError, Samples, optimize
from onnxslim_tk.graph.groups import Group, channel_groups
from onnxslim_tk.measure.observe import observed_shapes
from onnxslim_tk.passes.channels import Channels
from onnxslim_tk.plan.recipe import Recipe, Stage
from onnxslim_tk.train.sensitivity import taylor
from tests.models import model_of, normal, opened

FEEDS = [{"x": normal(k, 1, 8)} for k in range(12)]


def net(quiet: int) -> onnx.ModelProto:
    """Two layers; the last hears nothing of the first ``quiet`` of 32 channels."""
    text = """<ir_version: 8, opset_import: ["": 17]>
    g (float[n, 8] x) => (float[n, 5] y) {
        a = MatMul(x, w1)
        r = Relu(a)
        s = MatMul(r, w2)
        y = Softmax(s)
    }"""
    heard = normal(1, 32, 5)
    heard[:quiet] *= 0.01
    return model_of(text, {"w1": normal(0, 8, 32), "w2": heard})


def test_channels_that_the_outputs_hear_count_more() -> None:
    model = opened(net(16))
    groups = channel_groups(model, observed_shapes(model, FEEDS[0]))
    (group,) = [group for group in groups if isinstance(group, Group)]
    (scores,) = taylor(model, [group], FEEDS, 0).values()
    assert (np.sort(np.argsort(scores)[:16]) == np.arange(16)).mean() > 0.8
    assert scores[16:].mean() > 50 * scores[:16].mean()


def test_channels_are_pruned_by_sensitivity(tmp_path: Path) -> None:
    source = f"{tmp_path}/in.onnx"
    onnx.save(net(16), source)
    stage = Stage("cut", (Channels(importance="taylor", sequential=False),))
    anything = Budget(min_sqnr_db=-99.0, min_agreement=0.0)
    recipe = Recipe("cut", (stage,), budget=anything)
    report = optimize(source, f"{tmp_path}/out.onnx", recipe, Options(Samples(FEEDS)))
    (row,) = report.plan.stages[0].rows
    assert len(set(row.details["kept"]) & set(range(16, 32))) >= 14
    with pytest.raises(RecipeError, match="taylor needs samples"):
        optimize(source, f"{tmp_path}/out.onnx", Recipe("cut", (stage,)), Options())
