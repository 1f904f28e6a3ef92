"""Real models: whatever lies in models/ goes through the main job."""

from pathlib import Path

import onnx
import pytest

from onnxslim_tk import optimize
from onnxslim_tk.measure.runtime import Session

MODELS = sorted((Path(__file__).resolve().parents[1] / "models").rglob("*.onnx"))


def checks(path: Path) -> bool:
    try:
        onnx.checker.check_model(path, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError):
        return False
    return True


@pytest.mark.zoo
@pytest.mark.parametrize("recipe", ["light", "balanced", "small"])
@pytest.mark.parametrize("source", MODELS, ids=lambda path: path.stem)
def test_a_real_model_stays_valid_and_never_grows(
    source: Path, recipe: str, tmp_path: Path
) -> None:
    result = tmp_path / "result.onnx"
    optimize(source, result, recipe)
    assert result.stat().st_size <= source.stat().st_size
    before, after = Session(source), Session(result)
    assert (before.inputs, before.outputs) == (after.inputs, after.outputs)
    assert checks(result) or not checks(source)
