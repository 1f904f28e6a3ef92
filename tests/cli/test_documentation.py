import re
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest
import yaml
from typer.testing import Result

from onnxslim_tk.passes import PASSES
from onnxslim_tk.plan.augmentation import AUGMENTATIONS
from onnxslim_tk.plan.recipe import parse_recipe
from onnxslim_tk.plan.recovery import Distill
from onnxslim_tk.plan.training import training_of

Run = Callable[..., Result]
ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
TRAINING = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
RECIPES = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")

_TORCHRUN = ("--nproc-per-node", "--no-python")


def test_the_recipe_in_the_readme_can_be_read() -> None:
    (text,) = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    recipe = parse_recipe(text, "README", PASSES)
    assert [stage.name for stage in recipe.stages] == ["clean", "fuse", "share", "numbers"]
    assert recipe.budget.max_drop == 0.005


def test_every_option_in_the_readme_exists(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("typer.rich_utils.MAX_WIDTH", 200)
    verbs = ("optimize", "apply", "search", "demo", "student", "distill", "finetune")
    helps = [run(verb, "--help").stdout for verb in verbs]
    known = {"--cov", *_TORCHRUN, *re.findall(r"--[a-z][a-z0-9-]*", " ".join(helps))}
    for text in (README, TRAINING):
        assert set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", text)) - known == set()


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


def test_recipes_of_training_can_be_read() -> None:
    texts = re.findall(r"```yaml\n(.*?)```", TRAINING, re.DOTALL)
    trainings = [text for text in texts if "augment" in text]
    (training,) = [training_of(yaml.safe_load(text), "docs") for text in trainings]
    assert [a.name for a in training.augment] == ["shift", "noise", "erase"]
    stages = [text for text in texts if "recover" in text]
    assert [parse_recipe(text, "docs", PASSES).stages[2].recover for text in stages] == [
        Distill(steps=500)
    ]


def test_every_augmentation_and_setting_of_a_recovery_is_explained() -> None:
    told = set(re.findall(r"^\| `(\w+)` \| `\w+: ", TRAINING, re.MULTILINE))
    assert told == set(AUGMENTATIONS)
    section = TRAINING.split("## In a recipe")[1].split("\n## ")[0]
    rows = dict(re.findall(r"^\| `(\w+)`(?: \(main\))? \| (\S+) \|", section, re.MULTILINE))
    assert rows == {f.name: str(getattr(Distill(), f.name)) for f in fields(Distill)}
