from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from onnxslim_tk.graph.groups import Group, channel_groups
from onnxslim_tk.graph.model import Model
from onnxslim_tk.measure.observe import Statistics, observe
from onnxslim_tk.passes.channels import Channels
from onnxslim_tk.plan.proposal import Context, Proposal
from onnxslim_tk.plan.targets import ONNXRUNTIME_CPU
from onnxslim_tk.recover.narrowing import missed
from tests.models import model_of, normal, opened, outputs_of

Array = NDArray[Any]
TEXT = """<ir_version: 8, opset_import: ["": 17]>
g (float[N, 12] x) => (float[N, 8] y) { a = MatMul(x, w1) b = Relu(a) y = MatMul(b, w2) }"""


def parts() -> tuple[Model, Group]:
    model = opened(model_of(TEXT, {"w1": normal(1, 12, 24), "w2": normal(2, 24, 8)}))
    groups = channel_groups(model, {"x": (1, 12), "a": (1, 24), "b": (1, 24), "y": (1, 8)})
    return model, next(group for group in groups if isinstance(group, Group))


def shown(model: Model, rows: Array) -> Statistics:
    return observe(model, [{"x": rows}], frozenset({"mean", "covariance"}), 0)


def test_what_readers_miss_is_what_the_cut_model_misses() -> None:
    model, group = parts()
    fitted, others = normal(3, 400, 12), 1 + normal(4, 200, 12)
    seen, kept = shown(model, fitted), np.arange(0, group.count, 2)
    told = missed(group, kept, seen, shown(model, others))
    before = outputs_of(model, {"x": others})["y"]
    context = Context(replace(ONNXRUNTIME_CPU, channel_step=1), statistics=seen, shapes=seen.shapes)
    rows = Channels().propose(model, context)
    row = next(found for found in rows if isinstance(found, Proposal))
    details = {**row.details, "kept": kept.tolist()}
    Channels().apply(model, [replace(row, details=details)], context)
    after = outputs_of(model, {"x": others})["y"]
    assert told == pytest.approx(np.square(after - before).sum() / np.square(before).sum(), 1e-3)


def test_more_is_missed_on_samples_that_were_not_fitted() -> None:
    model, group = parts()
    kept = np.arange(0, group.count, 2)
    few, others = shown(model, normal(5, 30, 12)), shown(model, normal(6, 200, 12))
    own, foreign = missed(group, kept, few, few), missed(group, kept, few, others)
    assert own is not None
    assert foreign is not None
    assert foreign > 1.05 * own


def test_nothing_is_missed_where_all_stay_and_nothing_told_without_samples() -> None:
    model, group = parts()
    seen = shown(model, normal(7, 100, 12))
    assert missed(group, np.arange(group.count), seen, seen) == pytest.approx(0, abs=1e-4)
    assert missed(group, np.arange(4), None, seen) is None
