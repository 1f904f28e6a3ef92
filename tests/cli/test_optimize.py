import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import onnx
import pytest
from onnx import parser
from PIL import Image
from typer.testing import Result

Run = Callable[..., Result]


def strict(text: str) -> dict[str, Any]:
    """JSON without the constants that only Python reads."""

    def refuse(constant: str) -> NoReturn:
        raise AssertionError(f"{constant} is not JSON")

    data: dict[str, Any] = json.loads(text, parse_constant=refuse)
    return data


def test_writes_a_smaller_model_and_says_that_the_budget_holds(
    run: Run, model: Path, samples: Path, tmp_path: Path
) -> None:
    result = run("optimize", model, tmp_path / "out.onnx", "--calibration", samples)
    assert result.exit_code == 0
    assert (tmp_path / "out.onnx").stat().st_size < model.stat().st_size
    assert "the budget holds" in result.stdout
    assert "classes (guessed)" in result.stdout
    assert "--output-kind" in result.stdout


def test_a_kind_that_was_given_is_not_called_guessed(
    run: Run, model: Path, samples: Path, tmp_path: Path
) -> None:
    arguments = ("optimize", model, tmp_path / "out.onnx", "--calibration", samples)
    result = run(*arguments, "--output-kind", "values")
    assert result.exit_code == 0
    assert "values" in result.stdout
    assert "guessed" not in result.stdout


def test_json_is_strict_and_alone_on_stdout(
    run: Run, model: Path, samples: Path, tmp_path: Path
) -> None:
    report = tmp_path / "report.json"
    arguments = ("optimize", model, tmp_path / "out.onnx", "--calibration", samples)
    result = run(*arguments, "--metric", "accuracy", "--json", "--report", report)
    data = strict(result.stdout)
    assert data == strict(report.read_text())
    assert data["format"] == 1
    assert data["holds"] is True
    assert data["validation"]["result"]["file_bytes"] == (tmp_path / "out.onnx").stat().st_size
    assert data["validation"]["faithfulness"]["metric"] == "accuracy"
    assert data["samples"] == {"calibrate": 20, "choose": 10, "judge": 10, "overlaps": False}
    assert [stage["stage"] for stage in data["plan"]["stages"]] == [
        "clean",
        "fuse",
        "canonicalize",
        "equalize",
        "numbers",
    ]


def test_quiet_says_nothing_when_all_is_well(
    run: Run, model: Path, samples: Path, tmp_path: Path
) -> None:
    result = run("optimize", model, tmp_path / "out.onnx", "--samples", samples, "--quiet")
    assert result.exit_code == 0
    assert result.output == ""


def test_warns_on_stderr_that_nothing_was_judged_without_samples(
    run: Run, model: Path, tmp_path: Path
) -> None:
    result = run("optimize", model, tmp_path / "out.onnx", "--recipe", "light", "--quiet")
    assert result.exit_code == 0
    assert result.stderr.startswith("warning: no samples")
    assert result.stdout == ""


def test_a_name_from_the_model_neither_styles_nor_moves_the_terminal(
    run: Run, model: Path, samples: Path, tmp_path: Path
) -> None:
    for arguments in (
        ("optimize", model, tmp_path / "out.onnx", "--calibration", samples),
        ("optimize", model, tmp_path / "out.onnx", "--exclude", "nothing-like-it"),
        ("plan", model, tmp_path / "plan.json", "--calibration", samples),
        ("inspect", model),
    ):
        result = run(*arguments)
        assert "hid[red]den\\x1b[31m" in result.output
        assert "\x1b" not in result.output


def test_settings_and_exclusions_of_the_command_line_reach_the_recipe(
    run: Run, model: Path, samples: Path, tmp_path: Path
) -> None:
    arguments = ("optimize", model, tmp_path / "out.onnx", "--calibration", samples, "--json")
    result = run(*arguments, "--set", "quantize.ranges=minmax", "--exclude", "log*", "--seed", 3)
    data = strict(result.stdout)
    recipe = data["plan"]["recipe"]
    assert recipe["stages"]["numbers"][0]["quantize"]["ranges"] == "minmax"
    assert recipe["exclude"] == ["log*"]
    assert data["plan"]["seed"] == 3
    targets = [t for s in data["plan"]["stages"] for row in s["rows"] for t in row["targets"]]
    assert "logits" not in targets


def test_an_impossible_budget_leaves_the_tidied_model(
    run: Run, model: Path, samples: Path, tmp_path: Path
) -> None:
    arguments = ("optimize", model, tmp_path / "out.onnx", "--calibration", samples)
    result = run(*arguments, "--min-sqnr", "190", "--json")
    data = strict(result.stdout)
    assert data["only_tidied"] is True
    assert data["holds"] is True
    assert result.exit_code == 0
    assert "warning: no compressed model kept the budget" in result.stderr


def test_a_budget_that_not_even_the_original_keeps_ends_with_3(
    run: Run, model: Path, samples: Path, tmp_path: Path
) -> None:
    arguments = ("optimize", model, tmp_path / "out.onnx", "--calibration", samples)
    result = run(*arguments, "--min-sqnr", "300")
    assert result.exit_code == 3
    assert "the budget does not hold" in result.stdout


def test_a_metric_may_come_from_a_module_in_the_working_folder(
    run: Run, model: Path, samples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_own_score.py").write_text("def half(outputs, labels):\n    return 0.5\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    arguments = ("optimize", model, tmp_path / "out.onnx", "--calibration", samples)
    result = run(*arguments, "--metric", "my_own_score:half", "--json")
    found = strict(result.stdout)["validation"]["faithfulness"]
    assert found["metric"] == "my_own_score:half"
    assert found["drop"]["original"] == found["drop"]["result"] == 0.5


def test_weights_beside_the_model_file_are_read_and_counted(
    run: Run, model: Path, samples: Path, tmp_path: Path
) -> None:
    apart = tmp_path / "apart"
    apart.mkdir()
    source = apart / "tiny.onnx"
    onnx.save(
        onnx.load(model),
        source,
        save_as_external_data=True,
        location="weights.bin",
        size_threshold=16,
    )
    result = run("optimize", source, tmp_path / "out.onnx", "--calibration", samples, "--json")
    data = strict(result.stdout)
    assert result.exit_code == 0
    assert data["validation"]["original"]["file_bytes"] > (apart / "weights.bin").stat().st_size


def test_same_call_same_bytes(run: Run, model: Path, samples: Path, tmp_path: Path) -> None:
    for name in ("a.onnx", "b.onnx"):
        run("optimize", model, tmp_path / name, "--calibration", samples, "--quiet")
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_images_are_prepared_as_the_options_say(run: Run, tmp_path: Path) -> None:
    text = """<ir_version: 8, opset_import: ["": 17]>
    pixels (float[N, 3, 4, 4] image) => (float[N, 3] y) {
        p = GlobalAveragePool(image)
        y = Flatten(p)
    }"""
    onnx.save(parser.parse_model(text), tmp_path / "pixels.onnx")
    (tmp_path / "images").mkdir()
    for shade in (0, 100, 200):
        pixels = np.full((8, 6, 3), shade, np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{shade}.png")
    options = ("--image-mean", "0.5,0.5,0.5", "--image-std", "0.25", "--image-size", "4x4")
    more = ("--image-layout", "nchw", "--image-channels", "bgr", "--image-scale", "0.01")
    same = (tmp_path / "pixels.onnx", tmp_path / "pixels.onnx")
    arguments = ("validate", *same, "--samples", tmp_path / "images", "--json")
    result = run(*arguments, *options, *more, "--output-kind", "y=values")
    (output,) = strict(result.stdout)["validation"]["faithfulness"]["outputs"]
    assert result.exit_code == 0
    assert math.isclose(output["sqnr_db"], 200)


def test_a_largest_size_is_kept_or_refused_in_one_sentence(
    run: Run, model: Path, samples: Path, tmp_path: Path
) -> None:
    target = tmp_path / "small.onnx"
    call = ("optimize", model, target, "--samples", samples, "--recipe", "small", "--max-size")
    assert run(*call, "75%").exit_code == 0
    assert target.stat().st_size <= 0.75 * model.stat().st_size
    refused = run(*call, "a lot")
    assert refused.exit_code == 1
    assert "max size must read like 10%, 300KB, 2MB or 123456, got 'a lot'" in refused.stderr
