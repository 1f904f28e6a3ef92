from dataclasses import dataclass
from typing import Any, ClassVar

import pytest

from onnxslim_tk.errors import RecipeError
from onnxslim_tk.plan.proposal import Context, matches, with_settings
from onnxslim_tk.plan.targets import ONNXRUNTIME_CPU


@dataclass(frozen=True, slots=True)
class Method:
    name: ClassVar[str] = "method"
    main: ClassVar[str] = "strength"

    strength: float = 0.5
    gentle: bool = False


@dataclass(frozen=True, slots=True)
class Bare:
    name: ClassVar[str] = "bare"
    main: ClassVar[str] = ""


def context(*overrides: tuple[str, dict[str, Any]], exclude: tuple[str, ...] = ()) -> Context:
    return Context(ONNXRUNTIME_CPU, overrides=overrides, exclude=exclude)


def test_a_bare_value_sets_the_main_field_and_a_mapping_any() -> None:
    assert with_settings(Method(), 0.25) == Method(0.25)
    assert with_settings(Method(), {"gentle": True}) == Method(gentle=True)
    assert with_settings(Method(gentle=True), 1) == Method(1, gentle=True)


def test_true_changes_nothing_and_false_leaves_out() -> None:
    assert with_settings(Method(0.1), True) == Method(0.1)
    assert with_settings(Method(), False) is None


def test_a_setting_that_does_not_exist_is_named() -> None:
    with pytest.raises(RecipeError, match="method: there is no setting 'speed'; it has gentle, st"):
        with_settings(Method(), {"speed": 1})
    with pytest.raises(RecipeError, match="bare: there is no setting ''; it has none"):
        with_settings(Bare(), 3)


def test_the_last_match_wins_setting_by_setting() -> None:
    known = context(
        ("*", {"method": {"strength": 0.1, "gentle": True}}),
        ("b/*", {"method": 0.2}),
        ("b/2", {"other": 3}),
    )
    assert known.tuned(Method(), ["a/1"]) == Method(0.1, True)
    assert known.tuned(Method(), ["b/1"]) == Method(0.2, True)
    assert known.tuned(Method(), ["b/2"]) == Method(0.2, True)
    assert known.tuned(Bare(), ["b/2"]) == Bare()


def test_what_a_pattern_leaves_out_a_later_one_can_bring_back() -> None:
    known = context(
        ("*", {"method": False}), ("keep*", {"method": 0.3}), ("keep2", {"method": True})
    )
    assert known.tuned(Method(), ["a"]) is None
    assert known.tuned(Method(), ["keep1"]) == Method(0.3)
    assert known.tuned(Method(), ["keep2"]) == Method(0.3)


def test_excluded_layers_stay_out_whatever_patterns_say() -> None:
    known = context(("head", {"method": 0.3}), exclude=("head", "*.bias"))
    assert known.tuned(Method(), ["head"]) is None
    assert known.tuned(Method(), ["x", "x.bias"]) is None
    assert known.tuned(Method(), ["Head"]) == Method()


def test_patterns_are_matched_with_any_name_of_a_layer_and_case_counts() -> None:
    assert matches("/model/*/conv", ["x12", "/model/3/conv"])
    assert matches("conv[0-3]", ["conv2"])
    assert not matches("Conv2", ["conv2"])
    assert not matches("conv", ["conv2"])
