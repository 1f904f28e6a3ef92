import re
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest
from typer.testing import Result

from onnxslim_tk.passes import PASSES
from onnxslim_tk.plan.recipe import parse_recipe

Run = Callable[..., Result]
ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
RECIPES = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")


def test_the_recipe_in_the_readme_can_be_read() -> None:
    (text,) = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    recipe = parse_recipe(text, "README", PASSES)
    assert [stage.name for stage in recipe.stages] == ["clean", "fuse", "share", "numbers"]
    assert recipe.budget.max_drop == 0.005


def test_every_option_in_the_readme_exists(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERMINAL_WIDTH", "200")
    helps = [run(verb, "--help").stdout for verb in ("optimize", "apply", "search", "demo")]
    known = {"--cov", *re.findall(r"--[a-z][a-z-]*", " ".join(helps))}
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", README)) - known == set()


def test_every_command_in_the_readme_exists_and_none_is_missing(run: Run) -> None:
    listed = set(re.findall(r"^onnxslim (\w+)", README, re.MULTILINE))
    offered = set(re.findall(r"^│ (\w+)", run("--help").stdout, re.MULTILINE))
    assert listed == offered


@pytest.mark.parametrize("method", PASSES)
def test_every_setting_is_explained_with_its_default(method: str) -> None:
    (section,) = re.findall(rf"^### {method}\n(.*?)(?=^### |\Z)", RECIPES, re.MULTILINE | re.DOTALL)
    told = dict(re.findall(r"^\| `(\w+)`(?: \(main\))? \| `?([^|`]+?)`? \|", section, re.MULTILINE))
    settings = PASSES[method]
    defaults = {f.name: getattr(settings(), f.name) for f in fields(settings)}
    spelled = {
        name: f"[{', '.join(value)}]" if isinstance(value, tuple) else str(value)
        for name, value in defaults.items()
    }
    assert told == {
        name: re.sub("^(True|False)$", lambda m: m[0].lower(), text)
        for name, text in spelled.items()
    }
