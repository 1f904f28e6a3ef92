from itertools import pairwise
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the extra train isn't installed")

from onnxslim_tk.graph.model import Model
from onnxslim_tk.measure.observe import fetch
from onnxslim_tk.measure.probe import Probe
from onnxslim_tk.measure.samples import Samples
from onnxslim_tk.plan.recovery import Distill
from onnxslim_tk.train.blocks import Block, blocks_of, part_of, teach_blocks
from tests.models import normal, opened, outputs_of, residual_cnn

FEEDS = [{"x": normal(k, 1, 3, 16, 16)} for k in range(24)]


def worse() -> Model:
    """The teacher with its matrices disturbed."""
    model = opened(residual_cnn())
    for k, tensor in enumerate(model.graph.tensors().values()):
        values: Any = getattr(tensor, "values", None)
        if values is not None and values.ndim > 1:
            noise = normal(100 + k, *values.shape)
            tensor.values = (values + 0.3 * values.std() * noise).astype(np.float32)
    return model


def test_blocks_meet_where_one_tensor_holds_everything() -> None:
    model = opened(residual_cnn())
    found = blocks_of(model, model)
    assert len(found) > 2
    assert found[0].first == "x"
    assert found[-1].last == "y"
    assert all(a.last == b.first for a, b in pairwise(found))


def test_a_block_computes_what_it_does_in_the_model() -> None:
    model = opened(residual_cnn())
    value = FEEDS[0]["x"]
    for block in blocks_of(model, model):
        part = part_of(model, block, value.ndim)
        value = next(fetch(part, [block.last], [{block.first: value}]))[block.last]
    np.testing.assert_allclose(value, outputs_of(model, FEEDS[0])["y"], rtol=1e-4, atol=1e-5)


def test_a_model_taught_block_by_block_comes_nearer() -> None:
    teacher, student = opened(residual_cnn()), worse()
    parts = Samples(FEEDS[:16]), Samples(FEEDS[16:])
    recover = Distill(steps=120, batch=8, rate=5e-3)
    taught = teach_blocks(student, teacher, blocks_of(student, teacher), *parts, recover, 0)
    probe = Probe(teacher, FEEDS[16:])
    assert probe.difference(taught) < 0.5 * probe.difference(student)


def test_a_model_that_gets_no_better_stays_as_it_is() -> None:
    teacher, student = opened(residual_cnn()), opened(residual_cnn())
    parts = Samples(FEEDS[:4]), Samples(FEEDS[4:8])
    recover = Distill(steps=4, batch=4)
    found = teach_blocks(student, teacher, [Block("x", "y")], *parts, recover, 0)
    assert found is student
