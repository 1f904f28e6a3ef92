from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

Run = Callable[..., Result]


@pytest.fixture(params=["optimize", "apply", "pack"])
def command(
    run: Run, coarse: Path, samples: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> Callable[..., Result]:
    """Each command that writes a model, told where to write it and more."""
    before: list[object] = [request.param, coarse]
    after: list[object] = []
    if request.param != "pack":
        after = ["--samples", samples]
    if request.param == "apply":
        before.append(tmp_path / "plan.json")
        assert run("plan", coarse, before[-1], *after).exit_code == 0
    return lambda *more: run(*before, *more, *after)


@pytest.mark.parametrize("twice", [False, True])
def test_the_source_is_overwritten_only_in_place(
    command: Callable[..., Result], coarse: Path, twice: bool
) -> None:
    before, files = coarse.read_bytes(), set(coarse.parent.iterdir())
    assert command(coarse).exit_code == 2
    assert command().exit_code == 2
    assert coarse.read_bytes() == before
    assert command(*[coarse] * twice, "--in-place").exit_code == 0
    assert len(coarse.read_bytes()) < len(before)
    assert set(coarse.parent.iterdir()) == files


def test_in_place_allows_no_other_name(
    command: Callable[..., Result], coarse: Path, tmp_path: Path
) -> None:
    result = command(tmp_path / "other.onnx", "--in-place")
    assert result.exit_code == 2
    assert "leave it" in result.stderr
    assert not (tmp_path / "other.onnx").exists()


def test_a_write_that_fails_leaves_the_source_whole(
    command: Callable[..., Result], coarse: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, files = coarse.read_bytes(), set(coarse.parent.iterdir())

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("onnxslim_tk.writing.os.fsync", full)
    result = command("--in-place")
    assert result.exit_code == 1
    assert "cannot be written: No space left" in result.stderr
    assert coarse.read_bytes() == before
    assert set(coarse.parent.iterdir()) == files
