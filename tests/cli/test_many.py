import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

Run = Callable[..., Result]


def manifest(folder: Path) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
    return data


@pytest.fixture
def models(tmp_path: Path, model: Path) -> Path:
    """A folder with two models, one of them one floor down, and a file that is none."""
    folder = tmp_path / "models"
    (folder / "more").mkdir(parents=True)
    shutil.copy(model, folder / "a.onnx")
    shutil.copy(model, folder / "more" / "b.onnx")
    (folder / "broken.onnx").write_bytes(b"no model")
    return folder


def every(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.onnx"))


def test_one_manifest_and_a_failure_that_stops_nobody(
    run: Run, models: Path, samples: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    found = run("optimize", *every(models), "--out-dir", out, "--samples", samples)
    assert found.exit_code == 1
    assert "broken.onnx: model: broken.onnx is not an ONNX file" in found.stderr
    assert "2 of 3 done" in found.stdout
    data = manifest(out)
    assert (data["done"], data["budget"], data["failed"]) == (2, 0, 1)
    rows = {row["name"]: row for row in data["models"]}
    assert list(rows) == ["a.onnx", "broken.onnx", "more/b.onnx"]
    for name in ("a.onnx", "more/b.onnx"):
        assert (out / rows[name]["result"]).stat().st_size == rows[name]["result_bytes"]
        report = json.loads((out / rows[name]["report"]).read_text())
        assert report["result_sha256"] == rows[name]["result_sha256"]
    assert not (out / "broken.onnx").exists()
    # As if it had been alone.
    run("optimize", models / "a.onnx", tmp_path / "alone.onnx", "--samples", samples)
    assert (tmp_path / "alone.onnx").read_bytes() == (out / "a.onnx").read_bytes()


def test_goes_on_where_it_was_and_does_anew_what_has_changed(
    run: Run, models: Path, samples: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    given = ("--out-dir", out, "--samples", samples)
    run("optimize", *every(models), *given)
    times = {path: path.stat().st_mtime_ns for path in every(out)}
    shutil.copy(models / "a.onnx", models / "broken.onnx")
    (out / "more" / "b.onnx").write_bytes(b"cut off")
    found = run("optimize", *every(models), *given)
    assert found.exit_code == 0
    assert manifest(out)["done"] == 3
    assert (out / "a.onnx").stat().st_mtime_ns == times[out / "a.onnx"]
    assert (out / "more" / "b.onnx").read_bytes() == (out / "a.onnx").read_bytes()
    # Other settings are another job.
    run("optimize", *every(models), *given, "--recipe", "light")
    assert (out / "a.onnx").stat().st_mtime_ns > times[out / "a.onnx"]


def test_a_model_s_own_samples_are_found_by_its_name(
    run: Run, models: Path, samples: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "samples"
    folder.mkdir()
    shutil.copy(samples, folder / "a.npz")
    out = tmp_path / "out"
    run("optimize", models / "a.onnx", "--out-dir", out, "--samples", folder)
    report = json.loads((out / "a.report.json").read_text())
    assert report["samples"]["judge"] == 10


def test_several_processes_give_the_same_files(
    run: Run, models: Path, samples: Path, tmp_path: Path
) -> None:
    given = ("--samples", samples)
    run("optimize", *every(models), "--out-dir", tmp_path / "one", *given)
    run("optimize", *every(models), "--out-dir", tmp_path / "two", *given, "--jobs", 2, "--isolate")
    for name in ("a.onnx", "more/b.onnx"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--in-place"], "not with --in-place"),
        (["--json"], "not with --in-place"),
    ],
)
def test_options_for_one_model_are_refused_for_many(
    run: Run, models: Path, tmp_path: Path, options: list[str], said: str
) -> None:
    found = run("optimize", *every(models), "--out-dir", tmp_path / "out", *options)
    assert found.exit_code == 2
    assert said in found.stderr


def test_many_models_need_a_folder(run: Run, models: Path) -> None:
    found = run("optimize", *every(models))
    assert found.exit_code == 2
    assert "--out-dir" in found.stderr


def test_results_never_take_their_source_s_place(run: Run, models: Path) -> None:
    found = run("optimize", models / "a.onnx", models / "broken.onnx", "--out-dir", models)
    assert found.exit_code == 2
    assert "lies where its result would" in found.stderr


def test_nor_that_of_another_one(run: Run, models: Path) -> None:
    out = models / "more"
    found = run("optimize", models / "b.onnx", out / "b.onnx", "--out-dir", out)
    assert found.exit_code == 2
    assert "lies where the result of" in " ".join(found.stderr.split())
