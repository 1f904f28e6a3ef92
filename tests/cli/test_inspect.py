import json
from collections.abc import Callable
from pathlib import Path

import onnx
from typer.testing import Result

Run = Callable[..., Result]


def test_shows_layers_with_weights_and_multiplications(run: Run, model: Path) -> None:
    result = run("inspect", model)
    assert result.exit_code == 0
    assert "(16, 64)" in result.stdout
    assert "1,024" in result.stdout
    assert "ai.onnx 17" in result.stdout


def test_json_tells_every_layer(run: Run, model: Path) -> None:
    data = json.loads(run("inspect", model, "--json").stdout)
    assert data["format"] == 1
    assert data["macs"] == 16 * 64 + 64 * 5
    assert [layer["kind"] for layer in data["layers"]] == ["Gemm", "Gemm"]
    assert data["inputs"] == [{"name": "x", "dtype": "float32", "shape": ["N", 16]}]
    assert data["quantized_layers"] == 0
    assert data["provenance"] == {}


def test_a_result_tells_of_its_making(run: Run, model: Path, samples: Path, tmp_path: Path) -> None:
    result = tmp_path / "out.onnx"
    run("optimize", model, result, "--calibration", samples, "--quiet")
    data = json.loads(run("inspect", result, "--json").stdout)
    assert data["quantized_layers"] >= 1
    assert data["provenance"]["seed"] == "0"
    assert json.loads(data["provenance"]["recipe"])["name"] == "balanced"
    assert "made by onnxslim-tk" in run("inspect", result).stdout


def test_a_model_that_cannot_run_is_inspected_all_the_same(
    run: Run, model: Path, tmp_path: Path
) -> None:
    proto = onnx.load(model)
    proto.graph.node[1].domain = "made.up"
    proto.opset_import.add(domain="made.up", version=1)
    onnx.save(proto, tmp_path / "custom.onnx")
    result = run("inspect", tmp_path / "custom.onnx", "--json")
    data = json.loads(result.stdout)
    assert result.exit_code == 0
    assert "warning: MACs are unknown" in result.stderr
    assert data["macs"] is None
    assert data["custom_operators"] == {"made.up.Relu": 1}
