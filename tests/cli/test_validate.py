import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from typer.testing import Result

Run = Callable[..., Result]


@pytest.fixture
def broken(model: Path, tmp_path: Path) -> Path:
    """The model with its last layer's weights turned round."""
    proto = onnx.load(model)
    last = proto.graph.initializer[2]
    last.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(last), last.name))
    path = tmp_path / "broken.onnx"
    onnx.save(proto, path)
    return path


def test_a_model_is_as_good_as_itself(run: Run, model: Path, samples: Path) -> None:
    result = run("validate", model, model, "--samples", samples, "--metric", "accuracy")
    assert result.exit_code == 0
    assert "identical" in result.stdout
    assert "the budget holds" in result.stdout


def test_a_model_too_far_off_ends_with_3(
    run: Run, model: Path, broken: Path, samples: Path
) -> None:
    result = run("validate", model, broken, "--samples", samples, "--json")
    data = json.loads(result.stdout)
    assert result.exit_code == 3
    assert data["holds"] is False
    assert any(not check["holds"] for check in data["checks"])


def test_a_milder_budget_lets_it_pass(run: Run, model: Path, broken: Path, samples: Path) -> None:
    limits = ("--min-sqnr", "-50", "--min-agreement", "0")
    assert run("validate", model, broken, "--samples", samples, *limits).exit_code == 0


def test_judges_by_all_samples(run: Run, model: Path, samples: Path) -> None:
    result = run("validate", model, model, "--samples", samples, "--json")
    assert json.loads(result.stdout)["samples"]["judge"] == len(np.load(samples)["x"])


def test_says_that_nothing_is_proved_without_samples(run: Run, model: Path) -> None:
    result = run("validate", model, model)
    assert result.exit_code == 0
    assert "warning: no samples: nothing says" in result.stderr
    assert "not judged" in result.stdout
