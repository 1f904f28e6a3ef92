from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the extra train isn't installed")

from onnxslim_tk.errors import TrainingError
from onnxslim_tk.measure.metrics import load_metric
from onnxslim_tk.measure.samples import Samples
from onnxslim_tk.plan.augmentation import Noise
from onnxslim_tk.plan.schedule import Schedule
from onnxslim_tk.train.batches import Batches, endless
from onnxslim_tk.train.distillation import objective_of
from onnxslim_tk.train.fit import Lesson, Look, fit
from onnxslim_tk.train.module import GraphModule
from onnxslim_tk.train.objective import Objective
from onnxslim_tk.train.terms import Labelled, Term
from tests.models import mlp, model_of, normal, opened

FEEDS = [{"x": normal(k, 1, 32)} for k in range(40)]
LABELS = np.arange(40) % 3
QUICK = Schedule(steps=30, batch=8, rate=3e-3, every=10)


def learner(terms: list[Any], feeds: Any = FEEDS) -> Objective:
    student = GraphModule(opened(mlp()))
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(0.3 * parameter.std() * torch.randn_like(parameter))
    return objective_of(student, terms, [GraphModule(opened(mlp()))], Samples(feeds))


def weights(objective: Objective) -> list[Any]:
    return [parameter.detach().numpy().copy() for parameter in objective.parameters()]


def parts(labelled: bool = False) -> tuple[Samples, Samples]:
    labels = LABELS if labelled else None
    every = Samples(FEEDS, labels)
    return every.take(range(30)), every.take(range(30, 40))


def test_a_run_goes_on_from_where_it_was_stopped(tmp_path: Path) -> None:
    whole, stopped, resumed = (learner([Term("y")]) for _ in range(3))
    fit(whole, *parts(), QUICK)

    class Stop(Exception):  # noqa: N818
        pass

    def stop(look: Look, steps: int) -> None:
        if look.step == 20:
            raise Stop

    path = tmp_path / "state"
    with pytest.raises(Stop):
        fit(stopped, *parts(), QUICK, heard=stop, checkpoint=path)
    lesson = fit(resumed, *parts(), QUICK, checkpoint=path)
    assert [look.step for look in lesson.looks] == [0, 10, 20, 30]
    for one, two in zip(weights(whole), weights(resumed), strict=True):
        np.testing.assert_array_equal(one, two)


def test_a_checkpoint_is_data_and_of_one_run(tmp_path: Path) -> None:
    path = tmp_path / "state"
    for words in (b"no checkpoint", b"\x80\x04c__builtin__\nprint\n."):
        path.write_bytes(words)
        with pytest.raises(TrainingError, match="is no checkpoint"):
            fit(learner([Term("y")]), *parts(), QUICK, checkpoint=path)
    path.unlink()
    fit(learner([Term("y")]), *parts(), QUICK, checkpoint=path)
    with pytest.raises(TrainingError, match="another model, other samples"):
        fit(learner([Term("y"), Term("a1")]), *parts(), QUICK, checkpoint=path)
    path.unlink()
    learn, choose = parts(labelled=True)
    fit(learner([Labelled("y")]), learn, choose, QUICK, checkpoint=path)
    others = Samples(learn.feeds, (np.asarray(learn.labels) + 1) % 3)
    for given, metric in ((learn, load_metric("accuracy")), (others, None)):
        with pytest.raises(TrainingError, match="another model, other samples"):
            fit(learner([Labelled("y")]), given, choose, QUICK, metric=metric, checkpoint=path)


def test_the_best_metric_wins_over_the_lowest_loss() -> None:
    objective = learner([Labelled("y")])
    schedule = Schedule(steps=60, batch=8, rate=3e-3, every=10)
    lesson = fit(objective, *parts(labelled=True), schedule, metric=load_metric("accuracy"))
    best = max((look.metric or 0.0) for look in lesson.looks)
    assert lesson.after.metric == best
    with pytest.raises(TrainingError, match="needs labels"):
        fit(learner([Term("y")]), *parts(), QUICK, metric=load_metric("accuracy"))


def test_augmentation_changes_what_is_learnt_and_repeats() -> None:
    plain, noisy, again = (learner([Term("y")]) for _ in range(3))
    fit(plain, *parts(), QUICK)
    fit(noisy, *parts(), QUICK, augment=[Noise(0.5)])
    fit(again, *parts(), QUICK, augment=[Noise(0.5)])
    assert any((a != b).any() for a, b in zip(weights(plain), weights(noisy), strict=True))
    for one, two in zip(weights(noisy), weights(again), strict=True):
        np.testing.assert_array_equal(one, two)


def test_minutes_end_it() -> None:
    schedule = Schedule(steps=10**6, batch=4, every=10**6, minutes=0.01)
    lesson = fit(learner([Term("y")]), *parts(), schedule)
    assert lesson.ended == "minutes"
    assert 0 < lesson.looks[-1].step < 10**6


def test_every_sample_comes_once_an_epoch() -> None:
    order = endless(7, 0)
    first, second = ([next(order) for _ in range(7)] for _ in range(2))
    assert sorted(first) == sorted(second) == list(range(7))
    assert first != second
    later = endless(7, 0, 10)
    assert [next(later) for _ in range(4)] == second[3:]


def test_samples_that_a_graph_would_mix_are_taken_alone() -> None:
    text = """<ir_version: 8, opset_import: ["": 17]>
    g (float[n, 4] x) => (float[n, 3] y) {
        m = ReduceMean<axes=[0]>(x)
        c = Sub(x, m)
        y = MatMul(c, w)
    }"""
    student = GraphModule(opened(model_of(text, {"w": normal(0, 4, 3)})))
    samples = Samples([{"x": normal(k, 1, 4)} for k in range(4)])
    assert student.joins
    batches = Batches(samples, Objective(student, [Term("y")], [student]))
    assert [batch.rows for batch in batches.of(range(4))] == [(0,), (1,), (2,), (3,)]


def test_a_teacher_that_would_mix_samples_keeps_them_apart() -> None:
    text = """<ir_version: 8, opset_import: ["": 17]>
    g (float[n, 4] x) => (float[n, 3] y) {
        m = ReduceMean<axes=[0]>(x)
        c = Sub(x, m)
        y = MatMul(c, w)
    }"""
    plain = """<ir_version: 8, opset_import: ["": 17]>
    g (float[n, 4] x) => (float[n, 3] y) { y = MatMul(x, w) }"""
    student, teacher = (
        GraphModule(opened(model_of(t, {"w": normal(0, 4, 3)}))) for t in (plain, text)
    )
    batches = Batches(
        Samples([{"x": normal(k, 1, 4)} for k in range(3)]),
        Objective(student, [Term("y")], [teacher]),
    )
    assert [batch.rows for batch in batches.of([0, 1, 0], [0, 0, 1])] == [(0,), (1,), (0,)]


def test_a_sample_is_varied_anew_where_a_step_ends_a_turn() -> None:
    objective = learner([Term("y")])
    batches = Batches(Samples(FEEDS[:2]), objective, [Noise(0.5)])
    (batch,) = batches.of([0, 1, 0], [0, 0, 1])
    assert batch.rows == (0, 1, 0)
    assert (batch.feed["x"][0] != batch.feed["x"][2]).any()


def test_shapes_that_differ_go_into_batches_of_their_own() -> None:
    text = """<ir_version: 8, opset_import: ["": 17]>
    g (float[n, m, 4] x) => (float[n, m, 3] y) { y = MatMul(x, w) }"""
    student = GraphModule(opened(model_of(text, {"w": normal(0, 4, 3)})))
    samples = Samples([{"x": normal(k, 1, 2 + k % 2, 4)} for k in range(6)])
    batches = Batches(samples, Objective(student, [Term("y")], [student]))
    assert [batch.rows for batch in batches.of(range(6))] == [(0, 2, 4), (1, 3, 5)]


def test_lessons_are_counted_on() -> None:
    first = Lesson((Look(0, 2.0), Look(10, 1.0)), 10)
    second = Lesson((Look(0, 1.5), Look(10, 0.5)), 0, "patience")
    both = Lesson.of([first, second])
    assert [look.step for look in both.looks] == [0, 10, 11, 21]
    assert (both.best, both.ended, both.before.loss) == (11, "patience", 2.0)
