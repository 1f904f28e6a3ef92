import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

pytest.importorskip("optuna", reason="the extra search is not installed")
pytest.importorskip("plotly", reason="the extra search is not installed")

Run = Callable[..., Result]
RECIPE = """
name: tried
stages:
  share: [share]
  numbers: [quantize]
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    return path


def test_finds_a_front_and_a_point_of_it_can_be_applied(
    run: Run, model: Path, samples: Path, recipe: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    given = ("--samples", samples, "--metric", "accuracy", "--max-drop", "0.9")
    found = run("search", model, folder, *given, "--recipe", recipe, "--evaluations", 8)
    assert found.exit_code == 0, found.output
    assert "measured latency" in found.stdout
    assert "8 of 8" in found.stderr
    data = json.loads((folder / "front.json").read_text())
    assert data["objectives"] == ["size", "latency"]
    point = next(p for p in data["points"] if p["judged"])
    assert point["figures"]["drop"] <= 0.9
    out = tmp_path / "again.onnx"
    applied = run("apply", model, folder / point["plan"], out, *given)
    assert applied.exit_code == 0, applied.output
    assert out.read_bytes() == (folder / point["model"]).read_bytes()


def test_limits_of_size_are_the_search_s_own(
    run: Run, model: Path, samples: Path, recipe: Path, tmp_path: Path
) -> None:
    given = ("--samples", samples, "--recipe", recipe, "--objective", "quality", "--quiet")
    found = run("search", model, tmp_path / "out", *given, "--max-size", "60%", "--evaluations", 8)
    assert found.exit_code == 0, found.output
    assert found.stdout == ""
    data = json.loads((tmp_path / "out" / "front.json").read_text())
    assert data["limits"] == {"size": pytest.approx(0.6, abs=0.001)}
    assert all(p["figures"]["bytes"] <= 0.6 * model.stat().st_size for p in data["points"])


def test_a_limit_that_nothing_keeps_is_exit_code_3(
    run: Run, model: Path, samples: Path, recipe: Path, tmp_path: Path
) -> None:
    given = ("--samples", samples, "--recipe", recipe, "--evaluations", 2, "--max-size", "1%")
    found = run("search", model, tmp_path / "out", *given)
    assert found.exit_code == 3
    assert "no plan keeps the limits" in found.stderr


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--objective", "size,speed"], "no objective 'speed'"),
        (["--strategy", "luck"], "no strategy 'luck'"),
        (["--cluster", "http://somewhere"], "cluster: must read dask://"),
        (["--minutes", "-1"], "minutes must be above 0"),
    ],
)
def test_wrong_settings_are_one_sentence(
    run: Run, model: Path, samples: Path, tmp_path: Path, options: list[str], said: str
) -> None:
    found = run("search", model, tmp_path / "out", "--samples", samples, *options)
    assert found.exit_code == 1
    assert said in found.stderr
    assert not (tmp_path / "out").exists()


def test_it_needs_samples(run: Run, model: Path, tmp_path: Path) -> None:
    found = run("search", model, tmp_path / "out")
    assert found.exit_code == 1
    assert "needs samples" in found.stderr


def test_a_users_metric_reaches_the_workers(
    run: Run,
    model: Path,
    samples: Path,
    recipe: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "searched_metric.py").write_text(
        "def right(outputs, labels):\n"
        "    return sum(int(o.argmax() == k) for o, k in zip(outputs, labels)) / len(labels)\n"
    )
    monkeypatch.chdir(tmp_path)
    given = ("--samples", samples, "--recipe", recipe, "--evaluations", 2, "--isolate")
    found = run("search", model, tmp_path / "out", *given, "--metric", "searched_metric:right")
    assert found.exit_code == 0, found.output
    points = json.loads((tmp_path / "out" / "front.json").read_text())["points"]
    assert all(p["figures"]["drop"] is not None for p in points)


def test_a_signal_says_that_the_folder_can_be_gone_on_from(
    run: Run,
    model: Path,
    samples: Path,
    recipe: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    # The package has a command of the module's name.
    monkeypatch.setattr(sys.modules["onnxslim_tk.cli.search"], "searched", interrupted)
    found = run("search", model, tmp_path / "out", "--samples", samples, "--recipe", recipe)
    assert found.exit_code == 130
    assert "the same command goes on from there" in found.stderr
