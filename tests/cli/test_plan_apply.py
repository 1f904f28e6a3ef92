import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from onnxslim_tk import demo

Run = Callable[..., Result]


@pytest.fixture
def plan(run: Run, model: Path, samples: Path, tmp_path: Path) -> Path:
    path = tmp_path / "plan.json"
    result = run("plan", model, path, "--calibration", samples)
    assert result.exit_code == 0
    assert "quantize" in result.stdout
    return path


def edited(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def test_a_plan_carried_out_gives_the_bytes_of_optimize(run: Run, tmp_path: Path) -> None:
    options = ("--calibration", demo.CALIBRATION, "--metric", "accuracy", "--quiet")
    steps, direct, carried = (tmp_path / name for name in ("p.json", "a.onnx", "b.onnx"))
    choices = (*options, "--max-drop", "0.02", "--seed", 1)
    assert run("optimize", demo.MODEL, direct, *choices).exit_code == 0
    assert run("plan", demo.MODEL, steps, *choices).exit_code == 0
    assert run("apply", demo.MODEL, steps, carried, *options).exit_code == 0
    assert carried.read_bytes() == direct.read_bytes()


def test_so_does_a_plan_that_had_to_step_back(
    run: Run, model: Path, samples: Path, tmp_path: Path
) -> None:
    options = ("--calibration", samples, "--json")
    steps, direct, carried = (tmp_path / name for name in ("p.json", "a.onnx", "b.onnx"))
    choices = (*options, "--recipe", "small", "--set", "share.clusters=4", "--min-sqnr", 20)
    result = run("optimize", model, direct, *choices)
    assert json.loads(result.stdout)["steps_back"] > 0
    assert json.loads(result.stdout)["only_tidied"] is False
    assert run("plan", model, steps, *choices).exit_code == 0
    assert run("apply", model, steps, carried, *options).exit_code == 0
    assert carried.read_bytes() == direct.read_bytes()


def test_a_row_taken_out_by_hand_is_not_carried_out(
    run: Run, model: Path, samples: Path, plan: Path, tmp_path: Path
) -> None:
    def leave_logits(data: dict[str, Any]) -> None:
        for stage in data["stages"]:
            stage["rows"] = [row for row in stage["rows"] if "logits" not in row["targets"]]

    edited(plan, leave_logits)
    result = run("apply", model, plan, tmp_path / "out.onnx", "--calibration", samples, "--json")
    rows = [row for s in json.loads(result.stdout)["plan"]["stages"] for row in s["rows"]]
    assert result.exit_code == 0
    assert "logits" not in [target for row in rows for target in row["targets"]]
    assert any(row["method"] == "quantize" for row in rows)


def test_a_plan_for_another_model_is_refused(run: Run, model: Path, plan: Path) -> None:
    result = run("apply", demo.MODEL, plan, model.with_name("out.onnx"))
    assert result.exit_code == 1
    assert "made for a model with SHA-256" in result.stderr


def test_a_method_that_does_not_exist_is_named(
    run: Run, model: Path, plan: Path, tmp_path: Path
) -> None:
    def misspell(data: dict[str, Any]) -> None:
        data["stages"][-1]["rows"][0]["method"] = "quantise"

    edited(plan, misspell)
    result = run("apply", model, plan, tmp_path / "out.onnx")
    assert result.exit_code == 1
    assert "no method 'quantise'" in result.stderr


def test_a_broken_budget_writes_only_with_force(
    run: Run, model: Path, samples: Path, plan: Path, tmp_path: Path
) -> None:
    target = tmp_path / "out.onnx"
    arguments = ("apply", model, plan, target, "--calibration", samples, "--min-sqnr", 150)
    result = run(*arguments)
    assert result.exit_code == 3
    assert "was not written" in result.stderr
    assert not target.exists()
    assert run(*arguments, "--force").exit_code == 3
    assert target.exists()


def test_the_plan_as_json_is_the_plan_file(run: Run, model: Path, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    result = run("plan", model, path, "--json")
    assert json.loads(result.stdout) == json.loads(path.read_text())
