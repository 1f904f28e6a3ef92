import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import f1_score, roc_auc_score

from onnxslim_tk.errors import CalibrationError, RecipeError
from onnxslim_tk.measure.metrics import METRICS, from_function, load_metric, paired_drop
from onnxslim_tk.measure.scoring import edit_distance

seeds = st.integers(0, 2**32 - 1)


def rows(scores: Any) -> list[np.ndarray[Any, Any]]:
    return [np.asarray(row, np.float32)[None] for row in scores]


def score(name: str, outputs: list[Any], labels: Any) -> float:
    return METRICS[name](outputs, np.asarray(labels))


class TestAccuracy:
    def test_counts_best_classes(self) -> None:
        assert score("accuracy", rows([[1, 2], [2, 1], [0, 1]]), [1, 1, 1]) == pytest.approx(2 / 3)

    def test_reads_a_single_score_by_its_range(self) -> None:
        assert score("accuracy", rows([[0.4], [0.6]]), [0, 1]) == 1
        assert score("accuracy", rows([[-0.4], [0.4]]), [0, 1]) == 1
        assert score("accuracy", rows([[0.4], [1.001]]), [0, 1]) == 1

    def test_takes_batches_maps_and_bare_outputs(self) -> None:
        batches = [np.eye(3)[[0, 1]], np.eye(3)[[2, 2]]]
        assert score("accuracy", batches, [[0, 1], [2, 0]]) == 0.75
        assert score("accuracy", batches, [0, 1, 2, 0]) == 0.75
        assert score("accuracy", [np.eye(3)[k].reshape(1, 3, 1, 1) for k in (0, 2)], [0, 2]) == 1
        assert score("accuracy", [np.eye(3)[k] for k in (0, 2)], [0, 2]) == 1

    def test_takes_whole_numbers_and_one_hot_labels(self) -> None:
        assert score("accuracy", [np.array([4]), np.array([5])], [4, 4]) == 0.5
        assert score("accuracy", rows([[1, 2], [2, 1]]), [[0, 1], [0, 1]]) == 0.5

    def test_counts_steps_but_no_padding(self) -> None:
        outputs = [np.eye(3)[[0, 1, 2]][None], np.eye(3)[[0, 1]][None]]
        assert score("accuracy", outputs, [[0, 1, 1], [0, -1, -1]]) == 0.75

    def test_never_counts_what_is_no_number_as_right(self) -> None:
        assert score("accuracy", rows([[np.nan, 0], [1, 0]]), [0, 0]) == 0.5
        assert score("accuracy", rows([[np.nan], [0.1]]), [0, 0]) == 0.5

    @pytest.mark.parametrize("labels", [[0], [0, 1, 2], [[0, 1], [1, 0], [0, 1]], ["a", "b"]])
    def test_refuses_labels_that_do_not_fit(self, labels: Any) -> None:
        with pytest.raises(CalibrationError, match="metric: "):
            score("accuracy", rows([[1, 2], [2, 1]]), labels)


class TestTop5:
    def test_wants_the_class_among_the_best_five(self) -> None:
        scores = rows([np.arange(8), np.arange(8)])
        assert score("top5", scores, [3, 2]) == 0.5

    def test_ties_do_not_help(self) -> None:
        assert score("top5", rows(np.zeros((8, 8))), range(8)) == 5 / 8

    def test_agrees_with_sorting(self) -> None:
        rng = np.random.default_rng(0)
        scores, labels = rng.normal(size=(50, 12)).astype(np.float32), rng.integers(0, 12, 50)
        best = np.argsort(-scores, axis=1)[:, :5]
        expected = np.mean([label in row for label, row in zip(labels, best, strict=True)])
        assert score("top5", rows(scores), labels) == expected

    def test_needs_scores(self) -> None:
        with pytest.raises(CalibrationError, match="top5 needs scores"):
            score("top5", [np.array([3])], [3])


@given(st.integers(2, 40), st.integers(2, 5), seeds)
def test_f1_agrees_with_scikit_learn(count: int, classes: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores, labels = rng.normal(size=(count, classes)), rng.integers(0, classes, count)
    expected = f1_score(labels, scores.argmax(axis=1), average="macro", zero_division=0)
    assert score("f1", list(scores[:, None]), labels) == pytest.approx(expected)


class TestAuc:
    @given(st.integers(2, 40), st.integers(1, 5), seeds)
    def test_agrees_with_scikit_learn_on_ties_too(self, count: int, levels: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        labels = np.append([0, 1], rng.integers(0, 2, count))
        scores = rng.integers(0, levels, len(labels)) / levels
        expected = pytest.approx(roc_auc_score(labels, scores))
        assert score("auc", list(scores[:, None]), labels) == expected
        assert score("auc", list(np.stack([1 - scores, scores], 1)[:, None]), labels) == expected

    def test_reads_two_logits_by_their_difference(self) -> None:
        assert score("auc", rows([[5, 4], [1, 2]]), [0, 1]) == 1

    def test_averages_classes_against_the_rest(self) -> None:
        rng = np.random.default_rng(1)
        scores = rng.dirichlet(np.ones(4), 60)
        labels = rng.integers(0, 4, 60)
        expected = roc_auc_score(labels, scores, multi_class="ovr")
        assert score("auc", list(scores[:, None]), labels) == pytest.approx(expected)

    def test_has_no_figure_without_both_classes_or_numbers(self) -> None:
        assert np.isnan(score("auc", rows([[1], [2]]), [1, 1]))
        assert np.isnan(score("auc", rows([[1], [np.nan]]), [0, 1]))


class TestPearson:
    def test_correlates_the_last_value(self) -> None:
        rng = np.random.default_rng(2)
        outputs, labels = rng.normal(size=(30, 3)), rng.normal(size=30)
        expected = np.corrcoef(outputs[:, -1], labels)[0, 1]
        assert score("pearson", list(outputs[:, None]), labels) == pytest.approx(expected)

    def test_a_constant_output_correlates_with_nothing(self) -> None:
        assert score("pearson", rows([[0.1]] * 3), [1.0, 2.0, 3.0]) == 0
        assert np.isnan(score("pearson", rows([[1], [2]]), [3.0, 3.0]))


class TestCer:
    def path(self, *steps: int) -> np.ndarray[Any, Any]:
        return np.eye(9)[list(steps)][None]

    def test_counts_edits_of_the_text_read(self) -> None:
        outputs = [self.path(0, 1, 1, 2), self.path(3, 0, 3, 0, 4)]
        assert score("cer", outputs, [[1, 2, -1], [3, 3, 4]]) == 0
        assert score("cer", outputs, [[1, 1, 2], [3, 4, -1]]) == pytest.approx(2 / 5)
        assert score("cer", [np.full((1, 4, 9), np.nan)], [[1, 2]]) == 1

    @given(st.lists(st.integers(0, 3), max_size=8), st.lists(st.integers(0, 3), max_size=8))
    def test_edit_distance_is_a_distance(self, left: list[int], right: list[int]) -> None:
        distance = edit_distance(left, right)
        assert distance == edit_distance(right, left)
        assert abs(len(left) - len(right)) <= distance <= max(len(left), len(right))
        assert (distance == 0) == (left == right)

    def test_edit_distance_finds_the_cheapest_way(self) -> None:
        assert edit_distance([*map(ord, "kitten")], [*map(ord, "sitting")]) == 3


class TestLoading:
    def test_knows_metrics_by_name(self) -> None:
        assert load_metric("cer") is METRICS["cer"]
        assert [name for name, m in METRICS.items() if not m.higher_is_better] == ["cer"]
        with pytest.raises(RecipeError, match=r"one of accuracy, top5, .*, got 'acc'"):
            load_metric("acc")

    def test_imports_a_function(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "my_own_metric.py").write_text(
            "def error(outputs, labels):\n"
            "    return abs(sum(o.sum() for o in outputs) - labels.sum())\n"
            "error.higher_is_better = False\n"
            "number = 3\n"
        )
        monkeypatch.syspath_prepend(str(tmp_path))
        metric = load_metric("my_own_metric:error")
        assert metric([np.ones(2), np.ones(3)], np.array([1, 1])) == 3
        assert not metric.higher_is_better
        drop = paired_drop(metric, [np.ones(1)] * 4, [np.ones(1) * 3] * 4, np.ones(4), 0, 20)
        assert (drop.drop, drop.low, drop.high) == (8, 8, 8)
        for spec in ("my_own_metric:nothing", "no_such_module:f", "my_own_metric:number"):
            with pytest.raises(RecipeError, match=spec):
                load_metric(spec)
        del sys.modules["my_own_metric"]

    def test_wants_a_number_of_a_function(self) -> None:
        metric = from_function("mine", lambda outputs, labels: "high")  # type: ignore[arg-type, return-value]
        with pytest.raises(RecipeError, match="mine must return a number, got str"):
            metric([np.ones(1)], np.ones(1))


class TestDrop:
    labels = np.arange(200) % 2

    def outputs(self, wrong: int) -> list[np.ndarray[Any, Any]]:
        classes = np.where(np.arange(200) < wrong, 1 - self.labels, self.labels)
        return list(np.eye(2)[classes][:, None])

    def test_is_above_zero_when_the_result_is_worse(self) -> None:
        drop = paired_drop(METRICS["accuracy"], self.outputs(10), self.outputs(20), self.labels, 0)
        assert (drop.original, drop.result, drop.samples) == (0.95, 0.9, 200)
        assert drop.drop == pytest.approx(0.05)
        assert 0 < drop.low < 0.05 < drop.high < 0.1
        back = paired_drop(METRICS["accuracy"], self.outputs(20), self.outputs(10), self.labels, 0)
        assert back.drop == -drop.drop

    def test_turns_the_sense_of_an_error_rate(self) -> None:
        right, wrong = np.eye(3)[[[1, 2]]], np.eye(3)[[[1, 1]]]
        drop = paired_drop(METRICS["cer"], [right] * 3, [wrong] * 3, np.array([[1, 2]] * 3), 0)
        assert drop.drop == 0.5

    def test_sees_no_noise_where_nothing_changes(self) -> None:
        drop = paired_drop(METRICS["f1"], self.outputs(30), self.outputs(30), self.labels, 0)
        assert (drop.drop, drop.low, drop.high) == (0, 0, 0)

    def test_covers_the_true_drop_as_often_as_it_says(self) -> None:
        rng = np.random.default_rng(3)
        covered = 0
        for trial in range(100):
            before, after = rng.random((2, 150)) < np.array([[0.9], [0.8]])
            first, second = (list(np.eye(2)[right * 1][:, None]) for right in (before, after))
            labels = np.ones(150, int)
            drop = paired_drop(METRICS["accuracy"], first, second, labels, trial, rounds=200)
            covered += drop.low <= 0.1 <= drop.high
        assert 88 <= covered <= 100

    def test_depends_on_the_seed_alone(self) -> None:
        before, after = (
            list(values) for values in np.random.default_rng(4).normal(size=(2, 30, 1))
        )
        labels = np.arange(30.0)
        drops = [paired_drop(METRICS["pearson"], before, after, labels, seed) for seed in (1, 1, 2)]
        assert drops[0] == drops[1] != drops[2]

    def test_a_result_without_a_figure_holds_no_budget(self) -> None:
        labels = np.array([0.0, 1.0])
        drop = paired_drop(METRICS["pearson"], rows([[0], [1]]), rows([[0], [np.nan]]), labels, 0)
        assert drop.drop == drop.low == drop.high == np.inf

    def test_needs_labels_that_allow_a_figure(self) -> None:
        same = rows([[0], [1]])
        with pytest.raises(CalibrationError, match="auc must be defined"):
            paired_drop(METRICS["auc"], same, same, np.array([1, 1]), 0)
        with pytest.raises(CalibrationError, match="got 0 and 0"):
            paired_drop(METRICS["accuracy"], [], [], np.zeros(0, int), 0)

    @pytest.mark.parametrize("name", METRICS)
    def test_is_fast_on_many_samples(self, name: str) -> None:
        rng = np.random.default_rng(0)
        steps = (6,) if name == "cer" else ()
        before, after = (list(rng.normal(size=(10_000, 1, *steps, 10))) for _ in range(2))
        labels = rng.integers(1, 10, (10_000, *steps))
        start = time.thread_time()
        paired_drop(METRICS[name], before, after, labels, 0, rounds=100)
        assert time.thread_time() - start < 5
