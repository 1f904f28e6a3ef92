from pathlib import Path

import numpy as np
import onnx
import pytest

pytest.importorskip("torch", reason="the extra train isn't installed")

from onnxslim_tk import Budget, CalibrationError, Options, optimize
from onnxslim_tk.passes import PASSES
from onnxslim_tk.plan.recipe import Recipe, parse_recipe, recipe_data, recipe_from_data
from tests.models import normal, residual_cnn

ANYTHING = Budget(min_sqnr_db=-99.0, min_agreement=0.0)


def recipe(recover: str) -> Recipe:
    text = f"""
    stages:
      cut: {{passes: [{{sparsify: {{sparsity: 0.7}}}}], recover: {recover}}}
    """
    return parse_recipe(text, "test", PASSES)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    onnx.save(residual_cnn(), path)
    np.savez(tmp_path / "data.npz", x=normal(0, 64, 3, 16, 16))
    return path


def nearness(model: Path, recover: str) -> float:
    options = Options(model.with_name("data.npz"), budget=ANYTHING)
    report = optimize(model, model.with_name("out.onnx"), recipe(recover), options)
    assert report.validation.faithfulness is not None
    return report.validation.faithfulness.outputs[0].sqnr_db


@pytest.mark.parametrize("extent", ["whole", "blocks"])
def test_distillation_follows_the_closed_form(model: Path, extent: str) -> None:
    settings = f"{{distill: {{steps: 60, batch: 8, rate: 0.003, extent: {extent}}}}}"
    assert nearness(model, settings) > nearness(model, "false") + 0.2


def test_a_stage_keeps_its_recovery_in_plans() -> None:
    given = recipe("{distill: 40}")
    assert given.stages[0].recover is not None
    assert given.stages[0].recover.steps == 40
    assert recipe_from_data(recipe_data(given), "plan", PASSES) == given


def test_recovery_without_samples_is_refused(model: Path) -> None:
    with pytest.raises(CalibrationError, match="distill needs samples"):
        optimize(model, model.with_name("out.onnx"), recipe("distill"))
