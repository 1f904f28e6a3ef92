"""Recipes and plans that mean harm: read as plain data, within bounds, or refused."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from onnxslim_tk.errors import OnnxSlimError, RecipeError
from onnxslim_tk.passes import PASSES
from onnxslim_tk.pipeline import apply, plan
from onnxslim_tk.plan.plan import plan_data, read_plan
from onnxslim_tk.plan.recipe import PRESETS, parse_recipe, read_recipe

from .answers import a_sentence_at_most
from .models import plain
from .places import place_of

LAUGHS = "\n".join(
    ["a0: &a0 [lol, lol]"] + [f"a{k + 1}: &a{k + 1} [*a{k}, *a{k}]" for k in range(40)]
)

RECIPES: dict[str, str] = {
    "an object": "!!python/object:os.system {}",
    "a call": "stages: !!python/object/apply:os.system ['true']",
    "a name": "stages: !!python/name:os.system",
    "a tag of somebody's own": "stages: !mine {}",
    "a billion laughs": LAUGHS,
    "laughs where a value is shown": f"{LAUGHS}\nstages: {{clean: *a40}}",
    "laughs in a setting": f"{LAUGHS}\nstages: {{n: [{{quantize: {{ranges: *a40}}}}]}}",
    "a list that holds itself": "stages: &s [*s]",
    "a mapping that holds itself": "&r\nstages: {clean: [clean, *r]}",
    "deep lists": "[" * 1500,
    "deep and closed lists": "stages: " + "[" * 400 + "]" * 400,
    "a number of ten thousand digits": "seed: " + "9" * 10_000,
    "a day that is none": "stages: 2024-99-99",
    "a truth that is none": "stages: !!bool perhaps",
    "a whole number that is none": "stages: !!int ''",
    "a number that is none": "stages: !!float low",
    "a time that is none": "stages: !!timestamp now",
    "bytes that are none": "stages: !!binary ä",
    "keys that are lists": "? [a]\n: b",
    "nothing": "",
    "a word": "fast",
    "two documents": "a: 1\n---\nb: 2",
    "tabs": "stages:\n\t- clean",
    "control characters": "stages: \x07",
    "a number as stages": "stages: 3",
    "passes without stages": "stages: [clean, quantize]",
    "an unknown pass": "stages: {numbers: [shrink]}",
    "a wrong type": "stages: {numbers: [{quantize: {weight_bits: many}}]}",
    "an infinite number": "stages: {share: [{share: {loss: .inf}}]}",
    "no number": "stages: {numbers: [{quantize: {weight_bits: .nan}}]}",
    "a huge budget": "stages: {clean: [clean]}\nbudget: {min_cosine: 1.0e400}",
}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_that_means_harm_is_refused_in_one_sentence(name: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(RECIPES[name], "mine.yaml", PASSES)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(sorted(PRESETS.values())),
    st.integers(0, 200),
    st.integers(0, 40),
    st.text(st.sampled_from("&*!|>[]{}:,-?'\"#%@`0123456789.e~<= \nabpy"), max_size=12),
)
def test_no_damage_to_a_recipe_is_a_traceback(
    text: str, place: int, length: int, inserted: str
) -> None:
    with a_sentence_at_most(RecipeError):
        parse_recipe(text[:place] + inserted + text[place + length :], "mine.yaml", PASSES)


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "long", "large", "no text"])
def test_what_is_no_recipe_or_plan_is_refused_at_once(kind: str, tmp_path: Path) -> None:
    place = place_of(kind, tmp_path / "mine.yaml")
    with pytest.raises(RecipeError, match="neither a preset"):
        read_recipe(str(place), PASSES)
    with pytest.raises(RecipeError, match="not a readable JSON file"):
        read_plan(place, PASSES)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "in.onnx"
    path.write_bytes(plain().SerializeToString())
    return path


@pytest.fixture
def data(source: Path) -> dict[str, Any]:
    made: dict[str, Any] = json.loads(json.dumps(plan_data(plan(source))))
    return made


ROW: dict[str, Any] = {
    "targets": ["nowhere"],
    "method": "quantize",
    "setting": "int8",
    "details": {},
}


def put(data: dict[str, Any], path: str, value: Any) -> str:
    """The plan's text with the value at ``path`` replaced."""
    *ways, last = path.split(".")
    place: Any = data
    for way in ways:
        place = place[int(way) if way.isdigit() else way]
    place[int(last) if last.isdigit() else last] = value
    return json.dumps(data)


PLANS: dict[str, tuple[str, Any]] = {
    "another model": ("source_sha256", "0" * 64),
    "no model": ("source_sha256", None),
    "another format": ("format", 99),
    "a negative seed": ("seed", -1),
    "no seed": ("seed", "one"),
    "stages that are text": ("stages", "clean"),
    "an unknown stage": ("stages.0.stage", "shrink"),
    "rows that are a mapping": ("stages.0.rows", {}),
    "a row that is a number": ("stages.0.rows", [3]),
    "a row for nothing": ("stages.2.rows", [ROW]),
    "a row for no targets": ("stages.2.rows", [ROW | {"targets": []}]),
    "an unknown method": ("stages.2.rows", [ROW | {"method": "shrink"}]),
    "an infinite error": ("stages.2.rows", [ROW | {"error": float("inf")}]),
    "an error that is no number": ("stages.2.rows", [ROW | {"error": float("nan")}]),
    "a number beyond floats": ("stages.2.rows", [ROW | {"bytes_saved": 10**400}]),
    "a setting that is no number": ("stages.2.rows", [ROW | {"setting": float("nan")}]),
    "details that are a list": ("stages.2.rows", [ROW | {"details": [1]}]),
    "a recipe of nothing": ("recipe", None),
    "a recipe of text": ("recipe", "balanced"),
    "a budget of text": ("recipe.budget", "small"),
}


@pytest.mark.parametrize("name", PLANS)
def test_a_plan_that_does_not_fit_is_refused_and_nothing_is_written(
    name: str, data: dict[str, Any], source: Path, tmp_path: Path
) -> None:
    steps, target = tmp_path / "plan.json", tmp_path / "out.onnx"
    steps.write_text(put(data, *PLANS[name]), encoding="utf-8")
    with pytest.raises(OnnxSlimError) as caught:
        apply(source, target, steps)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500
    assert not target.exists()


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "[]", "null", "[" * 100_000, '{"a":' * 2000 + "1" + "}" * 2000),
        *('{"format": 1, "format": 2}', '{"format": 1e999}', "9" * 10_000, '{"format": 1}'),
    ],
    ids=lambda text: text[:12],
)
def test_damaged_json_is_refused_in_one_sentence(text: str, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text(text, encoding="utf-8")
    with pytest.raises(RecipeError) as caught:
        read_plan(tmp_path / "plan.json", PASSES)
    assert "\n" not in str(caught.value)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.integers(0, 2000),
    st.integers(0, 30),
    st.text(st.sampled_from('{}[]":,0123456789.eE-ntfNaI\\u'), max_size=8),
)
def test_no_damage_to_a_plan_is_a_traceback(
    data: dict[str, Any], tmp_path: Path, place: int, length: int, inserted: str
) -> None:
    text = json.dumps(data)
    (tmp_path / "plan.json").write_text(
        text[:place] + inserted + text[place + length :], encoding="utf-8"
    )
    with a_sentence_at_most(RecipeError):
        read_plan(tmp_path / "plan.json", PASSES)
