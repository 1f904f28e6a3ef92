import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from typer.testing import Result

from tests.models import outputs, residual_cnn

Run = Callable[..., Result]


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    path = tmp_path / "teacher.onnx"
    onnx.save(residual_cnn(), path)
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    path = tmp_path / "data.npz"
    np.savez(path, x=rng.standard_normal((48, 3, 16, 16)).astype(np.float32))
    return path


def weights(path: Path) -> int:
    return sum(numpy_helper.to_array(t).size for t in onnx.load(path).graph.initializer)


def test_a_student_is_narrower_and_runs(run: Run, teacher: Path, tmp_path: Path) -> None:
    out = tmp_path / "student.onnx"
    result = run("student", teacher, out, "--width", 0.5)
    assert result.exit_code == 0, result.stderr
    assert weights(out) < 0.5 * weights(teacher)
    found = outputs(onnx.load(out), {"x": np.zeros((2, 3, 16, 16), np.float32)})
    assert found["y"].shape == (2, 10)


def test_a_student_is_shallower(run: Run, teacher: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "student.onnx"
    call = ("student", teacher, out, "--width", 1, "--depth", 0.5, "--json")
    for options in ((), ("--data", data)):
        result = run(*call, *options)
        assert result.exit_code == 0, result.stderr
        plan = json.loads(result.stdout)["plan"]
        rows = [row for stage in plan["stages"] for row in stage["rows"]]
        assert [row["method"] for row in rows if row["method"] == "blocks"] == ["blocks"]
        assert weights(out) < weights(teacher)
        found = outputs(onnx.load(out), {"x": np.zeros((2, 3, 16, 16), np.float32)})
        assert found["y"].shape == (2, 10)


def test_a_student_with_samples_is_nearer_to_its_teacher(
    run: Run, teacher: Path, data: Path, tmp_path: Path
) -> None:
    call = ("student", teacher, tmp_path / "student.onnx", "--width", 0.5, "--json")
    result = run(*call, "--data", data)
    fitted = json.loads(result.stdout)["validation"]["faithfulness"]["outputs"][0]["sqnr_db"]
    assert result.exit_code == 0
    assert fitted > 0


def test_weights_drawn_anew_are_those_of_the_seed(run: Run, teacher: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="the extra train isn't installed")
    paths = [tmp_path / f"{k}.onnx" for k in range(4)]
    inits = (("keep", 0), ("random", 0), ("random", 0), ("random", 1))
    for path, (init, seed) in zip(paths, inits, strict=True):
        result = run("student", teacher, path, "--init", init, "--seed", seed)
        assert result.exit_code == 0, result.stderr
    kept, one, two, other = (path.read_bytes() for path in paths)
    assert one == two
    assert len({kept, one, other}) == 3
    x = np.random.default_rng(0).standard_normal((8, 3, 16, 16)).astype(np.float32)
    assert 0.01 < outputs(onnx.load(paths[1]), {"x": x})["y"].std() < 100


def test_what_cannot_be_cut_is_told(run: Run, teacher: Path, tmp_path: Path) -> None:
    out = tmp_path / "student.onnx"
    for options, words in [
        (("--width", 1), "both 1"),
        (("--width", 0), "width must be in (0, 1]"),
        (("--width", 1, "--depth", 0.9), "depth 0.9 leaves all 2 residual blocks"),
        (("--width", 0.99), "student: no channels of this model can be cut: keep 0.99 leaves"),
    ]:
        result = run("student", teacher, out, *options)
        assert result.exit_code == 1
        assert words in " ".join(result.stderr.split())
    assert not out.exists()
