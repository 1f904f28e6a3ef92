from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest

from onnxslim_tk.errors import RecipeError
from onnxslim_tk.passes import PASSES
from onnxslim_tk.plan.budget import Budget
from onnxslim_tk.plan.recipe import (
    PRESETS,
    Recipe,
    parse_recipe,
    read_recipe,
    recipe_data,
    recipe_from_data,
)


@dataclass(frozen=True, slots=True)
class Shrink:
    name: ClassVar[str] = "shrink"
    main: ClassVar[str] = "ratio"

    ratio: float = 0.5
    steps: int = 2
    way: Literal["fast", "slow"] = "fast"

    def __post_init__(self) -> None:
        if not 0 < self.ratio <= 1:
            raise RecipeError(f"shrink: ratio must be in (0, 1], got {self.ratio}")


@dataclass(frozen=True, slots=True)
class Tidy:
    name: ClassVar[str] = "tidy"
    main: ClassVar[str] = ""


METHODS: dict[str, type[Any]] = {"shrink": Shrink, "tidy": Tidy}
FULL = """
name: mine
stages:
  first: [tidy]
  second: [{shrink: {ratio: 0.25, steps: 3}}, tidy]
layers:
  "*": {shrink: 0.75}
  "head.*": {shrink: false, tidy: true}
  "tail": {shrink: {way: slow}}
exclude: ["stem", "*.norm"]
budget: {max_drop: 0.02, min_sqnr_db: 15}
"""


def passes(recipe: Recipe) -> list[tuple[Any, ...]]:
    return [stage.passes for stage in recipe.stages]


def parsed(text: str) -> Recipe:
    return parse_recipe(text, "test.yaml", METHODS)


def test_reads_stages_layers_exclusions_and_budget() -> None:
    recipe = parsed(FULL)
    assert recipe.name == "mine"
    assert [stage.name for stage in recipe.stages] == ["first", "second"]
    assert passes(recipe) == [(Tidy(),), (Shrink(0.25, 3), Tidy())]
    assert recipe.layers == (
        ("*", {"shrink": {"ratio": 0.75}}),
        ("head.*", {"shrink": False, "tidy": True}),
        ("tail", {"shrink": {"way": "slow"}}),
    )
    assert recipe.exclude == ("stem", "*.norm")
    assert recipe.budget == Budget(max_drop=0.02, min_sqnr_db=15)


def test_a_pass_may_have_a_bare_value_or_be_switched_off() -> None:
    recipe = parsed("stages: {a: [{shrink: 0.1}], b: [{shrink: false}], c: [{shrink: }]}")
    assert recipe.name == "test.yaml"
    assert [stage.name for stage in recipe.stages] == ["a", "c"]
    assert passes(recipe) == [(Shrink(0.1),), (Shrink(),)]


ERRORS = {
    "[]": "recipe test.yaml: must be a mapping with 'stages', got list",
    "": "recipe test.yaml: must be a mapping with 'stages', got nothing",
    "stages: [": "test.yaml: not valid YAML: ",
    "stage: {}": "recipe test.yaml: unknown key 'stage'; known: budget, exclude, layers, name, s",
    "name: x": "recipe test.yaml: 'stages' must map stage names to lists of passes",
    "stages: {}": "recipe test.yaml: 'stages' must map stage names to lists of passes",
    "stages: {a: tidy}": "recipe test.yaml: stage 'a' must be a list of passes",
    "stages: {a: []}": "recipe test.yaml: stage 'a' must be a list of passes",
    "stages: {a: [tody]}": "recipe test.yaml: no pass 'tody' in stage 'a'; known: shrink, tidy",
    "stages: {a: [{tidy: 1, shrink: 2}]}": "recipe test.yaml: no pass {'tidy': 1, 'shrink': 2} in",
    "stages: {a: [[tidy]]}": "recipe test.yaml: no pass ['tidy'] in stage 'a'",
    "stages: {a: [tidy, tidy]}": "recipe test.yaml: tidy stands twice in stage 'a'",
    "stages: {a: [{tidy: false}]}": "recipe test.yaml: every pass is switched off",
    "stages: {a: [{shrink: 2}]}": "shrink: ratio must be in (0, 1], got 2.0",
    "stages: {a: [{shrink: .nan}]}": "shrink: ratio must be in (0, 1], got nan",
    "stages: {a: [{shrink: {ration: 1}}]}": "there is no setting 'ration'; it has ratio, steps, w",
    "stages: {a: [{shrink: {steps: 1.5}}]}": "recipe test.yaml: shrink: steps: Input should be a v",
    "stages: {a: [{shrink: {way: odd}}]}": "recipe test.yaml: shrink: way: Input should be 'fast'",
    "stages: {a: [{shrink: much}]}": "recipe test.yaml: shrink: ratio: Input should be a valid num",
    "stages: {a: [{tidy: 3}]}": "recipe test.yaml: tidy: there is no setting ''; it has none",
    "stages: {a: [tidy]}\nlayers: [a]": "'layers' must map name patterns to settings",
    "stages: {a: [tidy]}\nlayers: {x: 1}": "layers: 'x' must map passes to settings",
    "stages: {a: [tidy]}\nlayers: {x: {nope: 1}}": "layers: 'x': no pass 'nope'; known: shr",
    "stages: {a: [tidy]}\nlayers: {x: {shrink: 9}}": "shrink: ratio must be in (0, 1], got 9.0",
    "stages: {a: [tidy]}\nlayers: {x: {shrink: big}}": "layers: 'x': shrink: ratio: Input should b",
    "stages: {a: [tidy]}\nlayers: {x: {shrink: {a: 1}}}": "layers: 'x': shrink: there is no settin",
    "stages: {a: [tidy]}\nexclude: stem": "'exclude' must be a list of name patterns",
    "stages: {a: [tidy]}\nexclude: [3]": "'exclude' must be a list of name patterns",
    "stages: {a: [tidy]}\nbudget: 0.5": "recipe test.yaml: budget: must be a mapping, got float",
    "stages: {a: [tidy]}\nbudget: {max_drop: -1}": "budget: max drop must be 0 or more, got -1.0",
    "stages: {a: [tidy]}\nbudget: {drop: 1}": "recipe test.yaml: budget: there is no setting 'drop",
}


@pytest.mark.parametrize("text", ERRORS)
def test_what_does_not_fit_is_said_in_one_clear_line(text: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parsed(text)
    message = str(caught.value)
    assert ERRORS[text] in message
    assert "\n" not in message
    assert len(message) < 250


def test_values_of_layers_are_read_as_those_of_stages_are() -> None:
    recipe = parsed("stages: {a: [shrink]}\nlayers: {x: {shrink: {steps: '3', ratio: 1}}}")
    assert recipe.layers == (("x", {"shrink": {"steps": 3, "ratio": 1.0}}),)


def test_data_of_a_recipe_reads_back_as_the_same() -> None:
    recipe = parsed(FULL)
    assert recipe_from_data(recipe_data(recipe), "plan", METHODS) == recipe
    again = recipe_data(recipe_from_data(recipe_data(recipe), "plan", METHODS))
    assert again == recipe_data(recipe)


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_recipes_and_survive_a_plan(preset: str) -> None:
    recipe = read_recipe(preset, PASSES)
    assert recipe.name == preset
    assert recipe_from_data(recipe_data(recipe), "plan", PASSES) == recipe


def test_one_setting_is_set_in_every_stage_that_has_the_pass() -> None:
    recipe = parsed("stages: {a: [shrink], b: [tidy, {shrink: 0.1}]}")
    changed = recipe.with_setting("shrink.steps=7")
    assert passes(changed) == [(Shrink(0.5, 7),), (Tidy(), Shrink(0.1, 7))]
    assert passes(recipe)[0] == (Shrink(),)
    assert passes(changed.with_setting(" shrink.way = slow"))[0] == (Shrink(0.5, 7, "slow"),)


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("shrink.ratio", "--set: must read pass.field=value, got 'shrink.ratio'"),
        ("ratio=1", "--set: must read pass.field=value, got 'ratio=1'"),
        (".ratio=1", "--set: must read pass.field=value"),
        ("shrink.=1", "--set: must read pass.field=value"),
        ("grow.ratio=1", "--set: the recipe has no pass 'grow'; it has shrink, tidy"),
        ("shrink.size=1", "shrink: there is no setting 'size'"),
        ("shrink.ratio=3", "shrink: ratio must be in (0, 1], got 3.0"),
        ("shrink.ratio=", "shrink: ratio: Input should be a valid number"),
        ("shrink.steps=[", "--set shrink.steps: not valid YAML"),
        ("tidy.x=1", "tidy: there is no setting 'x'; it has none"),
    ],
)
def test_an_assignment_that_does_not_fit_is_said_in_one_line(assignment: str, message: str) -> None:
    recipe = parsed("stages: {a: [shrink, tidy]}")
    with pytest.raises(RecipeError) as caught:
        recipe.with_setting(assignment)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_reads_files_and_says_what_is_neither_file_nor_preset(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(FULL)
    assert read_recipe(str(path), METHODS) == parsed(FULL)
    for source in ("nothing", str(tmp_path), "a\0b"):
        with pytest.raises(RecipeError, match=r"neither a preset .* nor a readable file"):
            read_recipe(source, METHODS)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(RecipeError, match="nor a readable file"):
        read_recipe(str(path), METHODS)


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ("channels: {macs: 0.5}", "macs"),
        ("channels: {keep: 0.5, attention: size}", "attention"),
        ("blocks: {recover: false}", "recover"),
        ("operators: {recover: false}", "recover"),
    ],
)
def test_what_counts_for_the_whole_model_is_no_setting_of_layers(settings: str, name: str) -> None:
    text = f"stages: {{s: [channels]}}\nlayers: {{'c*': {{{settings}}}}}"
    with pytest.raises(RecipeError, match=f"{name} is for the whole model, not for some layers"):
        parse_recipe(text, "r.yaml", PASSES)
