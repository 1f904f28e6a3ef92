from itertools import pairwise
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the extra train isn't installed")

from onnxslim_tk.errors import TrainingError
from onnxslim_tk.train.distillation import Lesson, Schedule, distill
from onnxslim_tk.train.losses import Term
from onnxslim_tk.train.module import GraphModule
from tests.models import Array, mlp, model_of, normal, opened

FEEDS = [{"x": normal(k, 1, 32)} for k in range(40)]
QUICK = Schedule(steps=60, batch=8, rate=3e-3, every=10)
TERMS = [Term("y"), Term("a1", weight=0.5)]


def worse(seed: int = 0) -> GraphModule:
    """The teacher's network, its weights disturbed."""
    student = GraphModule(opened(mlp()))
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(0.3 * parameter.std() * torch.randn_like(parameter))
    return student


def taught(student: GraphModule, schedule: Schedule = QUICK) -> Lesson:
    teacher = GraphModule(opened(mlp()))
    return distill(student, teacher, TERMS, FEEDS[:30], FEEDS[30:], schedule)


def state(module: GraphModule) -> list[Array]:
    return [parameter.detach().numpy().copy() for parameter in module.parameters()]


def test_a_student_comes_nearer_to_its_teacher() -> None:
    lesson = taught(worse())
    losses = dict(lesson.losses)
    assert losses[lesson.best] < 0.5 * losses[0]
    assert lesson.best == min(losses, key=lambda step: losses[step])


def test_a_student_never_ends_worse_than_it_began() -> None:
    student = worse()
    before = state(student)
    lesson = taught(student, Schedule(steps=30, batch=8, rate=30.0, every=10))
    assert lesson.best == 0
    for old, new in zip(before, state(student), strict=True):
        np.testing.assert_array_equal(old, new)


def test_learning_ends_when_nothing_gets_better() -> None:
    lesson = taught(worse(), Schedule(steps=500, batch=8, rate=30.0, every=5, patience=2))
    assert lesson.losses[-1][0] <= 10


def test_the_same_seed_gives_the_same_weights() -> None:
    first, second, other = worse(), worse(), worse()
    taught(first)
    taught(second)
    taught(other, Schedule(steps=60, batch=8, rate=3e-3, every=10, seed=1))
    for one, two in zip(state(first), state(second), strict=True):
        np.testing.assert_array_equal(one, two)
    assert any((a != b).any() for a, b in zip(state(first), state(other), strict=True))


def test_samples_of_many_shapes_are_taken_one_by_one() -> None:
    text = """<ir_version: 8, opset_import: ["": 17]>
    g (float[1, n, 4] x) => (float[1, n, 3] y) { y = MatMul(x, w) }"""
    teacher = GraphModule(opened(model_of(text, {"w": normal(0, 4, 3)})))
    student = GraphModule(opened(model_of(text, {"w": normal(1, 4, 3)})))
    assert not student.joins
    feeds = [{"x": normal(k, 1, 2 + k % 3, 4)} for k in range(12)]
    schedule = Schedule(steps=60, batch=4, rate=0.05, every=20)
    lesson = distill(student, teacher, [Term("y")], feeds[:8], feeds[8:], schedule)
    assert dict(lesson.losses)[lesson.best] < 0.1 * lesson.losses[0][1]


def test_progress_is_told() -> None:
    heard: list[tuple[int, float]] = []
    teacher = GraphModule(opened(mlp()))
    lesson = distill(
        worse(),
        teacher,
        TERMS,
        FEEDS[:8],
        FEEDS[8:],
        QUICK,
        lambda step, loss: heard.append((step, loss)),
    )
    assert tuple(heard) == lesson.losses[1:]


def test_the_rate_rises_and_falls() -> None:
    schedule = Schedule(steps=100, rate=1.0, warm_up=0.1)
    rates = [schedule.rate_at(step) for step in range(100)]
    assert np.argmax(rates) == 10
    assert max(rates) == pytest.approx(1)
    assert all(a < b for a, b in pairwise(rates[:11]))
    assert all(a > b for a, b in pairwise(rates[10:]))
    assert rates[-1] < 0.02


def test_settings_out_of_range_are_refused() -> None:
    wrong: list[dict[str, Any]] = [
        {"steps": 0},
        {"rate": 0.0},
        {"average": 1.0},
        {"clip": float("inf")},
    ]
    for settings in wrong:
        with pytest.raises(TrainingError, match=f"train: {next(iter(settings))} must be"):
            Schedule(**settings)
    with pytest.raises(TrainingError, match="at least one term"):
        distill(worse(), worse(), [], FEEDS, FEEDS, QUICK)
