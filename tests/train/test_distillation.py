import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the extra train isn't installed")

from onnxslim_tk.errors import TrainingError
from onnxslim_tk.measure.samples import Samples
from onnxslim_tk.plan.schedule import Schedule
from onnxslim_tk.train.distillation import distill
from onnxslim_tk.train.fit import Lesson, Look
from onnxslim_tk.train.module import GraphModule
from onnxslim_tk.train.terms import Term
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
    return distill(student, teacher, TERMS, Samples(FEEDS[:30]), Samples(FEEDS[30:]), schedule)


def state(module: GraphModule) -> list[Array]:
    return [parameter.detach().numpy().copy() for parameter in module.parameters()]


def test_a_student_comes_nearer_to_its_teacher() -> None:
    lesson = taught(worse())
    assert lesson.after.loss < 0.5 * lesson.before.loss
    assert lesson.after == min(lesson.looks, key=lambda look: look.loss)


def test_a_student_never_ends_worse_than_it_began() -> None:
    student = worse()
    before = state(student)
    lesson = taught(student, Schedule(steps=30, batch=8, rate=30.0, every=10))
    assert lesson.best == 0
    for old, new in zip(before, state(student), strict=True):
        np.testing.assert_array_equal(old, new)


def test_learning_ends_when_nothing_gets_better() -> None:
    lesson = taught(worse(), Schedule(steps=500, batch=8, rate=30.0, every=5, patience=2))
    assert lesson.looks[-1].step <= 10
    assert lesson.ended in ("patience", "diverged")


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
    parts = Samples(feeds[:8]), Samples(feeds[8:])
    lesson = distill(student, teacher, [Term("y")], *parts, schedule)
    assert lesson.after.loss < 0.1 * lesson.before.loss


def test_progress_is_told() -> None:
    heard: list[Look] = []
    teacher = GraphModule(opened(mlp()))
    parts = Samples(FEEDS[:8]), Samples(FEEDS[8:])
    lesson = distill(
        worse(), teacher, TERMS, *parts, QUICK, heard=lambda look, steps: heard.append(look)
    )
    assert tuple(heard) == lesson.looks


def test_nothing_to_learn_is_refused() -> None:
    with pytest.raises(TrainingError, match="at least one loss"):
        distill(worse(), worse(), [], Samples(FEEDS), Samples(FEEDS), QUICK)
    with pytest.raises(TrainingError, match="at least one sample"):
        distill(worse(), worse(), TERMS, Samples([]), Samples(FEEDS), QUICK)
