import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="the extra train isn't installed")

from onnxslim_tk.errors import TrainingError
from onnxslim_tk.train.losses import COMPARISONS, LABELLED, relative_error, soft_labels
from onnxslim_tk.train.rules import Tensor
from tests.models import normal


def scores(seed: int) -> Tensor:
    return torch.from_numpy(normal(seed, 5, 7))


@given(temperature=st.floats(0.5, 20), shift=st.floats(-5, 5))
def test_soft_labels_are_zero_for_equal_distributions_alone(
    temperature: float, shift: float
) -> None:
    same = soft_labels(scores(0) + shift, scores(0), temperature)
    assert float(same) == pytest.approx(0, abs=1e-4)
    assert float(soft_labels(scores(1), scores(0), temperature)) > 0.01


def test_the_gradient_of_soft_labels_is_the_difference_of_the_distributions() -> None:
    student = scores(1).requires_grad_()
    soft_labels(student, scores(0), 3.0).backward()
    expected = 3.0 * (torch.softmax(student / 3, -1) - torch.softmax(scores(0) / 3, -1)) / 5
    np.testing.assert_allclose(student.grad.numpy(), expected.detach().numpy(), atol=1e-6)


def test_probabilities_and_scores_teach_the_same() -> None:
    student, teacher = scores(1), scores(0)
    soft = torch.softmax(student, -1), torch.softmax(teacher, -1)
    by_shares = COMPARISONS["probabilities"](*soft, 2.0)
    assert float(by_shares) == pytest.approx(float(soft_labels(student, teacher, 2.0)), rel=1e-4)


def test_a_student_that_says_nothing_errs_by_one() -> None:
    assert float(relative_error(torch.zeros(5, 7), scores(0))) == pytest.approx(1)
    assert float(relative_error(scores(0) * 1000, scores(0) * 1000)) == 0


@pytest.mark.parametrize("kind", sorted(COMPARISONS))
def test_what_is_alike_costs_nothing_and_what_differs_does(kind: str) -> None:
    def of(seed: int) -> Tensor:
        values = torch.from_numpy(normal(seed, 2, 3, 5, 5))
        return torch.softmax(values, -1) if kind in ("probabilities", "attention") else values

    same, other = (of(0), of(1)) if kind != "chances" else (of(0).sigmoid(), of(1).sigmoid())
    assert float(COMPARISONS[kind](same, same, 1.0)) == pytest.approx(0, abs=1e-5)
    assert float(COMPARISONS[kind](other, same, 1.0)) > 0.01


def test_scores_and_probabilities_are_held_against_labels_alike() -> None:
    labels = torch.tensor([0, 6, 2, 3, 1])
    loss = LABELLED["cross-entropy"]
    soft = loss(torch.softmax(scores(0), -1), labels, "probabilities")
    assert float(loss(scores(0), labels, "scores")) == pytest.approx(float(soft), rel=1e-4)
    chances = LABELLED["bce"](scores(0).sigmoid(), (scores(1) > 0), "chances")
    plain = LABELLED["bce"](scores(0), (scores(1) > 0), "scores")
    assert float(plain) == pytest.approx(float(chances), rel=1e-4)


def test_pictures_have_their_classes_along_the_second_axis() -> None:
    maps, labels = torch.from_numpy(normal(0, 2, 4, 3, 5)), torch.ones(2, 3, 5)
    expected = torch.nn.functional.cross_entropy(maps, labels.long())
    found = LABELLED["cross-entropy"](maps, labels, "scores")
    assert float(found) == pytest.approx(float(expected), rel=1e-5)


def test_sequences_are_held_against_labels_of_any_length() -> None:
    good = torch.full((1, 5, 4), -9.0)
    for step, letter in enumerate([1, 0, 2, 2, 3]):
        good[0, step, letter] = 9.0
    loss = LABELLED["ctc"]
    assert float(loss(good, torch.tensor([[1, 2, 3, -1]]), "scores")) < 0.01
    assert float(loss(good, torch.tensor([[3, 2, 1, -1]]), "scores")) > 1


def test_labels_that_do_not_fit_are_refused() -> None:
    wrong = [
        ("cross-entropy", torch.zeros(4), "needs labels of the shape"),
        ("cross-entropy", torch.full((5,), 7), "0 or more and below 7"),
        ("cross-entropy", torch.full((5,), -5), "got -5"),
        ("cross-entropy", torch.full((5,), torch.nan), "got nan"),
        ("mse", torch.zeros(5, 6), "needs labels of the shape"),
        ("mse", torch.full((5, 7), torch.nan), "finite"),
        ("bce", torch.full((5, 7), torch.nan), r"in \[0, 1\]"),
        ("bce", torch.full((5, 7), 2.0), r"in \[0, 1\]"),
        ("ctc", torch.zeros(5, 2), "ctc needs an output"),
    ]
    for name, labels, words in wrong:
        with pytest.raises(TrainingError, match=words):
            LABELLED[name](scores(0), labels, "scores")
    steps = torch.from_numpy(normal(0, 1, 6, 5))
    for labels, words in (([1, 5], "below 5"), ([1, 0], "1 or more"), ([-1, 2], "at the end")):
        with pytest.raises(TrainingError, match=words):
            LABELLED["ctc"](steps, torch.tensor([labels]), "scores")


def test_samples_without_any_label_cost_nothing() -> None:
    assert float(LABELLED["cross-entropy"](scores(0), torch.full((5,), -1), "scores")) == 0
