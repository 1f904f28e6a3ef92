from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from typer.testing import Result

Run = Callable[..., Result]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--recipe", "tiniest"), "neither a preset (balanced, light, small) nor a readable file"),
        (("--set", "quantize"), "must read pass.field=value, got 'quantize'"),
        (("--set", "quantize.colour=red"), "there is no setting 'colour'"),
        (("--set", "quantize.weight_bits=9"), "weight bits must be 2 to 8, got 9"),
        (("--set", "paint.colour=red"), "the recipe has no pass 'paint'"),
        (("--exclude", "*decoder*"), "'*decoder*' matches no layer of this model"),
        (("--metric", "beauty"), "must be one of accuracy"),
        (("--metric", "no_such_module:score"), "cannot be imported"),
        (("--min-cosine", "1.5"), "must be in [0, 1], got 1.5"),
        (("--samples", "nowhere.npz"), "no such file or folder: nowhere.npz"),
        (("--image-std", "0"), "std must be above 0"),
    ],
)
def test_a_wrong_value_is_one_line_and_exit_code_1(
    run: Run, model: Path, tmp_path: Path, options: tuple[str, ...], words: str
) -> None:
    result = run("optimize", model, tmp_path / "out.onnx", *options)
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")
    assert len(result.stderr.splitlines()) == 1
    assert words in result.stderr
    assert not (tmp_path / "out.onnx").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--image-mean", "0.5;0.5"), "numbers with commas"),
        (("--image-size", "224"), "HEIGHTxWIDTH"),
        (("--image-layout", "CHWN"), "CHWN"),
        (("--output-kind", "poem"), "'poem' is none of classes"),
        (("--output-kind", "rhyme=classes"), "no output 'rhyme'"),
        (("--samples-limit", "0"), "--samples-limit"),
        (("--seed", "-1"), "--seed"),
        (("--colour", "red"), "--colour"),
    ],
)
def test_an_option_that_cannot_be_read_is_wrong_usage(
    run: Run, model: Path, tmp_path: Path, options: tuple[str, ...], words: str
) -> None:
    result = run("optimize", model, tmp_path / "out.onnx", *options)
    assert result.exit_code == 2
    assert words in result.stderr
    assert not (tmp_path / "out.onnx").exists()


def test_a_missing_model_is_named(run: Run, tmp_path: Path) -> None:
    result = run("optimize", tmp_path / "none.onnx", tmp_path / "out.onnx")
    assert result.exit_code == 1
    assert "none.onnx cannot be read: No such file" in result.stderr


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x08\x08\x12\x05other" * 9])
def test_what_is_not_a_model_is_said_to_be_none(run: Run, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "text.onnx").write_bytes(content)
    for verb in (("optimize", "out.onnx"), ("inspect",), ("pack", "out.onnx")):
        rest = [tmp_path / name for name in verb[1:]]
        result = run(verb[0], tmp_path / "text.onnx", *rest)
        assert result.exit_code == 1
        assert "text.onnx is not an ONNX file" in result.stderr


def test_arrays_of_other_names_are_told_with_those_needed(
    run: Run, model: Path, tmp_path: Path
) -> None:
    np.savez(tmp_path / "wrong.npz", pictures=np.zeros((4, 16), np.float32))
    arguments = ("optimize", model, tmp_path / "out.onnx", "--samples", tmp_path / "wrong.npz")
    result = run(*arguments)
    assert result.exit_code == 1
    assert "must be named x" in result.stderr
    assert "got pictures" in result.stderr


@pytest.mark.parametrize("place", ["tiny.onnx", ".", "no/such/folder/out.onnx"])
def test_a_target_that_cannot_be_is_refused_before_any_work(
    run: Run, model: Path, tmp_path: Path, place: str
) -> None:
    before = model.read_bytes()
    for verb in ("optimize", "pack", "plan"):
        assert run(verb, model, tmp_path / place).exit_code == 2
    assert run("optimize", model, tmp_path / "o.onnx", "--report", tmp_path / place).exit_code == 2
    assert model.read_bytes() == before


def test_a_line_break_in_a_name_cannot_forge_a_second_line(run: Run, tmp_path: Path) -> None:
    result = run("inspect", tmp_path / "a\nerror: all is lost.onnx")
    assert result.exit_code == 1
    assert len(result.stderr.splitlines()) == 1
    assert "a\\nerror" in result.stderr
