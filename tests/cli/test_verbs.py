from collections.abc import Callable
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from onnxslim_tk import __version__

Run = Callable[..., Result]


@pytest.mark.parametrize("arguments", [("version",), ("--version",)])
def test_tells_the_version(run: Run, arguments: tuple[str, ...]) -> None:
    result = run(*arguments)
    assert result.exit_code == 0
    assert result.stdout == f"{__version__}\n"


def test_two_files_without_a_verb_get_the_right_command(run: Run) -> None:
    result = run("in.onnx", "out file.onnx")
    assert result.exit_code == 2
    assert "optimize in.onnx 'out file.onnx'" in result.stderr


def test_one_file_without_a_verb_gets_the_right_command(run: Run) -> None:
    assert "inspect in.onnx" in run("in.onnx").stderr


def test_another_word_is_no_command(run: Run) -> None:
    result = run("optimise")
    assert result.exit_code == 2
    assert "optimize" in result.stderr


@pytest.mark.parametrize(
    "verb", ["optimize", "plan", "apply", "validate", "inspect", "pack", "demo", "version"]
)
def test_every_command_explains_itself(run: Run, verb: str) -> None:
    result = run(verb, "--help")
    assert result.exit_code == 0
    assert "Usage" in result.stdout


def patched(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("onnxslim_tk.pipeline.pack", fail)


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (KeyboardInterrupt(), 130, "error: interrupted"),
        (MemoryError(), 1, "error: not enough memory"),
    ],
)
def test_an_end_from_outside_is_one_line_too(
    app: Any,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    code: int,
    words: str,
) -> None:
    patched(monkeypatch, error)
    result = CliRunner().invoke(app, ["pack", str(model), str(tmp_path / "out.onnx")])
    assert result.exit_code == code
    assert result.stderr.startswith(words)
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize("installed", [True, False])
def test_warns_of_the_other_package_of_that_name(
    run: Run, model: Path, monkeypatch: pytest.MonkeyPatch, installed: bool
) -> None:
    def find(name: str) -> object:
        if name == "onnxslim" and installed:
            return object()
        raise PackageNotFoundError(name)

    monkeypatch.setattr("onnxslim_tk.cli.console.distribution", find)
    result = run("version")
    assert result.stdout == f"{__version__}\n"
    assert ("the unrelated package 'onnxslim'" in result.stderr) is installed
    assert len(result.stderr.splitlines()) == installed
