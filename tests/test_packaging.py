from __future__ import annotations

import subprocess
import sys
import tomllib
from importlib.metadata import entry_points, version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import onnxslim_tk
from onnxslim_tk import demo, errors

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    with (ROOT / "pyproject.toml").open("rb") as file:
        return tomllib.load(file)


def packages_below(folder: Path, name: str) -> set[str]:
    """Names of the folders that hold Python files, with ``folder`` itself called ``name``."""
    holders = {path.parent.relative_to(folder) for path in folder.rglob("*.py")}
    return {".".join((name, *holder.parts)) for holder in holders}


def test_every_folder_with_code_is_a_listed_package(project: dict[str, Any]) -> None:
    listed = project["tool"]["setuptools"]["packages"]
    on_disk = packages_below(ROOT / "onnxslim_tk", "onnxslim_tk")
    on_disk |= packages_below(ROOT / "cli", "onnxslim_tk.cli")
    assert sorted(listed) == sorted(on_disk)


def test_every_listed_package_has_an_init_file(project: dict[str, Any]) -> None:
    setuptools = project["tool"]["setuptools"]
    folders = [
        ROOT / setuptools["package-dir"].get(name, name.replace(".", "/"))
        for name in setuptools["packages"]
    ]
    assert [folder for folder in folders if not (folder / "__init__.py").is_file()] == []


def test_the_installed_version_is_the_package_s_own() -> None:
    assert version("onnxslim-tk") == onnxslim_tk.__version__


@pytest.mark.parametrize("command", ["onnxslim", "onnxslim-tk"])
def test_both_commands_start_the_same_app(command: str) -> None:
    (script,) = entry_points(group="console_scripts", name=command)
    assert script.value == "onnxslim_tk_start:main"
    assert callable(script.load())


def test_what_starts_the_commands_imports_nothing_of_the_package() -> None:
    code = "import sys, onnxslim_tk_start; assert 'onnxslim_tk' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_type_checkers_see_the_package_as_typed(project: dict[str, Any]) -> None:
    assert (ROOT / "onnxslim_tk" / "py.typed").is_file()
    assert "py.typed" in project["tool"]["setuptools"]["package-data"]["onnxslim_tk"]


def test_the_demo_is_complete_and_small(project: dict[str, Any]) -> None:
    patterns = project["tool"]["setuptools"]["package-data"]["onnxslim_tk.demo"]
    files = [demo.MODEL, demo.CALIBRATION, demo.TEST]
    assert all(any(file.match(pattern) for pattern in patterns) for file in files)
    assert sum(file.stat().st_size for file in files) <= 300_000


def test_the_demo_sets_fit_the_model_and_share_no_image() -> None:
    (model_input,) = onnx.load(demo.MODEL).graph.input
    shape = [dim.dim_value for dim in model_input.type.tensor_type.shape.dim]
    sets = [np.load(path) for path in (demo.CALIBRATION, demo.TEST)]
    for samples in sets:
        images, labels = samples[model_input.name], samples["labels"]
        assert images.dtype == np.float32
        assert list(images.shape[1:]) == shape[1:]
        assert 0 <= images.min() < images.max() <= 1
        assert labels.shape == images.shape[:1]
        assert set(labels.tolist()) == set(range(10))
    calibration, test = ({image.tobytes() for image in samples["image"]} for samples in sets)
    assert not calibration & test


def test_the_demo_model_leaves_batch_normalization_to_fold() -> None:
    operators = [node.op_type for node in onnx.load(demo.MODEL).graph.node]
    assert operators.count("BatchNormalization") == operators.count("Conv") == 6


def test_every_error_has_the_one_root_and_its_exit_code() -> None:
    codes = {
        errors.OnnxSlimError: 1,
        errors.ModelError: 1,
        errors.RecipeError: 1,
        errors.CalibrationError: 1,
        errors.BudgetError: 3,
        errors.SessionError: 1,
    }
    assert {error: error.exit_code for error in codes} == codes
    assert all(issubclass(error, errors.OnnxSlimError) for error in codes)
