from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxslim_tk.measure.kinds import OutputKind, collapse, guess_kind

RNG = np.random.default_rng(0)


def softmax(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    powers = np.exp(values)
    shares: np.ndarray[Any, Any] = powers / powers.sum(axis=-1, keepdims=True)
    return shares


def normal(*shape: int) -> np.ndarray[Any, Any]:
    return RNG.normal(size=shape).astype(np.float32)


@pytest.mark.parametrize(
    ("name", "array", "kind"),
    [
        ("y", normal(1, 10), "classes"),
        ("y", softmax(normal(1, 30000)), "classes"),
        ("features", softmax(normal(1, 10)), "classes"),
        ("y", normal(1, 10, 1, 1), "classes"),
        ("label", np.array([3]), "classes"),
        ("text", np.array(["a"], dtype=object), "classes"),
        ("y", softmax(normal(1, 7, 12)), "sequence"),
        ("logits", normal(1, 7, 12), "sequence"),
        ("y", softmax(normal(1, 7, 3)), "embedding"),
        ("scores", abs(normal(1, 900, 80)), "embedding"),
        ("last_hidden_state", normal(1, 7, 12), "embedding"),
        ("y", normal(2, 16) / np.linalg.norm(normal(2, 16)), "classes"),
        ("embedding", normal(1, 16), "embedding"),
        ("y", normal(1, 30000), "embedding"),
        ("y", normal(1, 1, 4, 4), "map"),
        ("y", normal(1, 1), "values"),
        ("y", normal(5), "values"),
        ("y", np.float32(1), "values"),
    ],
)
def test_tells_kinds_by_values_and_then_by_name(name: str, array: Any, kind: OutputKind) -> None:
    assert guess_kind(name, [np.asarray(array)] * 2) == kind


def test_tells_rows_of_norm_one() -> None:
    rows = normal(3, 16)
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    assert guess_kind("y", [unit]) == "embedding"
    assert guess_kind("y", [unit, rows]) == "classes"


def test_reads_a_path_of_classes() -> None:
    assert collapse([0, 3, 3, 0, 3, 5, 5, 0]) == [3, 3, 5]
    assert collapse([]) == []
    assert collapse([1, 1], blank=1) == []


@given(st.lists(st.integers(0, 3)))
def test_holding_a_step_longer_changes_no_text(path: list[int]) -> None:
    assert collapse([step for step in path for _ in range(3)]) == collapse(path)
