"""Real runs that get into each other's way or find no room: what lies there stays whole."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from onnxslim_tk.pipeline import optimize

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs POSIX")

ENTRY = "from onnxslim_tk_start import main; main()"
# A result takes more, all else that a run writes takes less.
ROOM = 2000
OLD = b"the user's file"
Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(tmp_path: Path) -> Start:
    """Start ``onnxslim optimize`` as a user does, with files of a limited size if asked."""

    def call(*arguments: object, room: int | None = None) -> "subprocess.Popen[str]":
        def limited() -> None:
            import resource

            if room is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))

        command = [sys.executable, "-c", ENTRY, "optimize", *map(str, arguments), "--no-cache"]
        return subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
            env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
            preexec_fn=limited,
        )

    return call


def ended(process: Any) -> tuple[int, str]:
    """Exit code and what was said on stderr."""
    _, errors = process.communicate(timeout=120)
    return process.returncode, errors


def test_of_two_runs_onto_one_output_one_result_lies_there_whole(
    start: Start, model: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "out.onnx").write_bytes(OLD)
    recipes = ("light", "small")
    for name in recipes:
        optimize(model, tmp_path / f"{name}.onnx", name)
    results = {(tmp_path / f"{name}.onnx").read_bytes() for name in recipes}
    assert len(results) == 2
    both = [start(model, folder / "out.onnx", "--recipe", name) for name in recipes]
    assert [ended(process)[0] for process in both] == [0, 0]
    assert (folder / "out.onnx").read_bytes() in results
    assert os.listdir(folder) == ["out.onnx"]


def test_a_run_that_finds_no_room_leaves_the_old_file(
    start: Start, model: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "out.onnx").write_bytes(OLD)
    process = start(model, folder / "out.onnx", "--recipe", "light", "--isolate", room=ROOM)
    code, errors = ended(process)
    assert code == 1
    (line,) = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert line.endswith("out.onnx cannot be written: File too large")
    assert "Traceback" not in errors
    assert (folder / "out.onnx").read_bytes() == OLD
    assert os.listdir(folder) == ["out.onnx"]


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="needs a device that is full")
def test_a_full_device_is_one_sentence(start: Start, model: Path) -> None:
    before = model.read_bytes()
    code, errors = ended(start(model, "/dev/full", "--recipe", "light", "--no-isolate"))
    assert code == 1
    assert "error: model: /dev/full cannot be written: No space left on device\n" in errors
    assert "Traceback" not in errors
    assert model.read_bytes() == before
