import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from typer.testing import Result

from onnxslim_tk import demo

Run = Callable[..., Result]


def test_the_demo_holds_on_images_that_took_no_part(run: Run, tmp_path: Path) -> None:
    result = run("demo", "--keep", tmp_path / "kept", "--json")
    data = json.loads(result.stdout)
    validation = data["validation"]
    assert result.exit_code == 0
    assert data["holds"] is True
    assert validation["faithfulness"]["metric"] == "accuracy"
    assert data["samples"]["judge"] == len(np.load(demo.TEST)["labels"])
    assert validation["result"]["file_bytes"] < validation["original"]["file_bytes"] / 3
    kept = tmp_path / "kept" / demo.MODEL.name
    onnx.checker.check_model(onnx.load(kept), full_check=True)


def test_the_demo_prints_its_tables(run: Run) -> None:
    result = run("demo", "--recipe", "light")
    assert result.exit_code == 0
    for words in ("Figures", "Metric", "Budget", "the budget holds"):
        assert words in result.stdout
