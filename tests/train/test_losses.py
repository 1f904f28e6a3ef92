import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="the extra train isn't installed")

from onnxslim_tk.errors import TrainingError
from onnxslim_tk.train.losses import Term, by_name, loss_of, relative_error, soft_labels
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
    by_scores = loss_of([Term("y", kind="scores", temperature=2)], {"y": student}, {"y": teacher})
    soft = {"y": torch.softmax(student, -1)}, {"y": torch.softmax(teacher, -1)}
    by_shares = loss_of([Term("y", kind="probabilities", temperature=2)], *soft)
    assert float(by_scores) == pytest.approx(float(by_shares), rel=1e-4)


def test_a_student_that_says_nothing_errs_by_one() -> None:
    assert float(relative_error(torch.zeros(5, 7), scores(0))) == pytest.approx(1)
    assert float(relative_error(scores(0) * 1000, scores(0) * 1000)) == 0


def test_terms_add_up_by_their_weights() -> None:
    found, wanted = {"a": scores(0), "b": scores(1)}, {"a": scores(2), "c": scores(3)}
    one, other = Term("a", weight=0.5), Term("b", "c", weight=2.0)
    both = loss_of([one, other], found, wanted)
    parts = loss_of([one], found, wanted) + loss_of([other], found, wanted)
    assert float(both) == pytest.approx(float(parts))


def test_tensors_of_one_name_share_the_weight() -> None:
    terms = by_name(["a", "b", "c"], ["c", "a"], weight=0.5)
    assert [(term.student, term.weight) for term in terms] == [("a", 0.25), ("c", 0.25)]
    assert by_name(["a"], ["b"]) == []


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(TrainingError, match="weight must be above 0, got 0"):
        Term("y", weight=0)
    with pytest.raises(TrainingError, match="temperature must be above 0"):
        Term("y", temperature=-1)
    with pytest.raises(TrainingError, match="kind must be one of scores"):
        Term("y", kind="other")
    with pytest.raises(TrainingError, match=r"'y' has the shape \(5, 7\), the teacher's 'z'"):
        loss_of([Term("y", "z")], {"y": scores(0)}, {"z": scores(0)[:3]})
