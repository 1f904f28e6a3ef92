from collections.abc import Callable
from pathlib import Path

import onnx
from typer.testing import Result

from onnxslim_tk.pipeline import load

Run = Callable[..., Result]


def constants(path: Path) -> list[tuple[str, bytes]]:
    tensors = load(path).graph.tensors().items()
    values = {name: tensor.values for name, tensor in tensors if hasattr(tensor, "values")}
    return sorted((name, array.tobytes()) for name, array in values.items())


def test_packs_to_fewer_bytes_that_open_as_the_same_values(
    run: Run, coarse: Path, tmp_path: Path
) -> None:
    result = run("pack", coarse, tmp_path / "out.onnx")
    assert result.exit_code == 0
    assert "Packed without loss" in result.stdout
    assert (tmp_path / "out.onnx").stat().st_size < 0.6 * coarse.stat().st_size
    assert constants(tmp_path / "out.onnx") == constants(coarse)


def test_keeps_what_a_result_says_of_its_making(run: Run, coarse: Path, tmp_path: Path) -> None:
    made, again = tmp_path / "made.onnx", tmp_path / "again.onnx"
    run("optimize", coarse, made, "--recipe", "light", "--quiet")
    assert run("pack", made, again).exit_code == 0
    entries = [{e.key: e.value for e in onnx.load(p).metadata_props} for p in (made, again)]
    assert entries[0] == entries[1] != {}


def test_says_when_there_is_nothing_to_gain(run: Run, coarse: Path, tmp_path: Path) -> None:
    run("pack", coarse, tmp_path / "once.onnx")
    result = run("pack", tmp_path / "once.onnx", tmp_path / "twice.onnx")
    assert result.exit_code == 0
    assert "no smaller than the original" in result.stderr
