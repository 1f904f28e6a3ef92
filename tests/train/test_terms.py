from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the extra train isn't installed")

from onnxslim_tk.errors import TrainingError
from onnxslim_tk.train.rules import Tensor
from onnxslim_tk.train.terms import Custom, Labelled, Term
from tests.models import normal


def scores(seed: int) -> Tensor:
    return torch.from_numpy(normal(seed, 5, 7))


def test_a_term_weighs_and_names_the_tensor_of_its_teacher() -> None:
    term = Term("a", "b", weight=2.0, by=1)
    assert term.asks == ((1, "b"),)
    found = term({"a": scores(0)}, [{}, {"b": scores(1)}], None)
    assert float(found) == pytest.approx(
        2 * float(Term("a")({"a": scores(0)}, [{"a": scores(1)}], None))
    )


def test_each_task_has_its_column_of_labels() -> None:
    labels = torch.tensor([[0, 6], [1, 5], [2, 4], [3, 3], [4, 2]])
    alone = Labelled("y")({"y": scores(0)}, [], labels[:, 1])
    assert float(Labelled("y", column=1)({"y": scores(0)}, [], labels)) == float(alone)
    with pytest.raises(TrainingError, match="have no column 2"):
        Labelled("y", column=2)({"y": scores(0)}, [], labels)


def test_a_function_of_the_user_gives_a_loss() -> None:
    term = Custom(lambda outputs, labels, taught: outputs["y"].sum(), ("y",), weight=0.5)
    assert float(term({"y": scores(0)}, [], None)) == pytest.approx(0.5 * float(scores(0).sum()))
    with pytest.raises(TrainingError, match="a tensor of one number, got int"):
        Custom(lambda outputs, labels, taught: 3, ("y",))({"y": scores(0)}, [], None)


def test_tensors_of_different_shapes_are_refused() -> None:
    with pytest.raises(TrainingError, match=r"'a' has the shape \(5, 7\)"):
        Term("a")({"a": scores(0)}, [{"a": scores(0)[:3]}], None)


@pytest.mark.parametrize(
    "settings", [{"kind": "nothing"}, {"weight": 0.0}, {"temperature": float("inf")}]
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(TrainingError, match=f"train: {next(iter(settings))} must be"):
        Term("a", **settings)
    with pytest.raises(TrainingError, match="loss must be one of"):
        Labelled("a", "nothing")
