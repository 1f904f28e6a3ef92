import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser
from typer.testing import Result

pytest.importorskip("torch", reason="the extra train isn't installed")

Run = Callable[..., Result]
SHORT = ("--steps", 40, "--every", 20, "--rate", 0.003)


@pytest.fixture
def student(model: Path, tmp_path: Path) -> Path:
    """The model with its weights disturbed."""
    proto = onnx.load(model)
    rng = np.random.default_rng(3)
    for tensor in proto.graph.initializer:
        values = numpy_helper.to_array(tensor)
        noisy = values + 0.1 * rng.standard_normal(values.shape).astype(np.float32)
        tensor.CopyFrom(numpy_helper.from_array(noisy, tensor.name))
    path = tmp_path / "student.onnx"
    onnx.save(proto, path)
    return path


def test_a_student_comes_nearer_and_is_reported_beside_what_it_was(
    run: Run, model: Path, student: Path, samples: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.onnx"
    result = run("distill", model, student, out, "--data", samples, *SHORT, "--json")
    assert result.exit_code == 0, result.stderr
    data = json.loads(result.stdout)
    after = data["validation"]["faithfulness"]["outputs"][0]["sqnr_db"]
    assert after > data["training"]["before"]["outputs"][0]["sqnr_db"] + 3
    assert data["training"]["best"] == 40
    assert [tensor.name for tensor in onnx.load(out).graph.output] == ["logits"]


def test_the_tables_tell_what_was_learnt(
    run: Run, model: Path, student: Path, samples: Path, tmp_path: Path
) -> None:
    options = ("--metric", "accuracy", "--alpha", 0.5, "-T", 3)
    out = tmp_path / "out.onnx"
    result = run("distill", model, student, out, "--data", samples, *SHORT, *options)
    assert result.exit_code == 0, result.stderr
    for words in ("Training, ended by", "as it came", "beside the teacher", "accuracy"):
        assert words in result.stdout


def test_the_same_call_gives_the_same_bytes(
    run: Run, model: Path, student: Path, samples: Path, tmp_path: Path
) -> None:
    one, two, other = (tmp_path / name for name in ("1.onnx", "2.onnx", "3.onnx"))
    for out, seed in ((one, 0), (two, 0), (other, 1)):
        call = ("distill", model, student, out, "--data", samples, *SHORT, "--seed", seed)
        assert run(*call).exit_code == 0
    assert one.read_bytes() == two.read_bytes() != other.read_bytes()


def test_a_student_that_gets_no_better_stays_as_it_is(
    run: Run, model: Path, student: Path, samples: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.onnx"
    wild = ("--steps", 20, "--rate", 1000, "--ema", 0)
    result = run("distill", model, student, out, "--data", samples, *wild)
    assert result.exit_code == 0
    assert "the result is the model as it came" in result.stderr
    assert out.read_bytes() == student.read_bytes()


def test_a_recipe_declares_losses_and_augmentations(
    run: Run, model: Path, student: Path, samples: Path, tmp_path: Path
) -> None:
    recipe, out = tmp_path / "mine.yaml", tmp_path / "out.onnx"
    recipe.write_text("steps: 20\nseed: 7\nlosses: {temperature: 2}\naugment: [{noise: 0.2}]\n")
    call = ("distill", model, student, out, "--data", samples, "--recipe", recipe)
    assert run(*call).exit_code == 0
    stored = {e.key: e.value for e in onnx.load(out).metadata_props}
    made = json.loads(stored["onnxslim_tk.recipe"])["distill"]
    assert made["seed"] == 7
    assert made["losses"]["temperature"] == 2
    assert made["augment"][0]["noise"]["deviation"] == 0.2
    recipe.write_text("augment: [blur]\n")
    assert "no augmentation 'blur'" in run(*call).stderr


def test_a_run_that_was_ended_goes_on_from_its_checkpoint(
    run: Run, model: Path, student: Path, samples: Path, tmp_path: Path
) -> None:
    whole, resumed, state = (tmp_path / name for name in ("1.onnx", "2.onnx", "state"))
    assert run("distill", model, student, whole, "--data", samples, *SHORT).exit_code == 0
    call = ("distill", model, student, resumed, "--data", samples, *SHORT, "--checkpoint", state)
    assert run(*call).exit_code == 0
    assert state.is_file()
    assert run(*call).exit_code == 0
    assert whole.read_bytes() == resumed.read_bytes()
    other = run(*call, "--seed", 1)
    assert other.exit_code == 1
    assert "another model, other samples or other settings" in other.stderr


def test_wrong_usage_is_told_before_any_work(
    run: Run, model: Path, student: Path, samples: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.onnx"
    call = ("distill", model, student, out)
    assert run(*call).exit_code == 2
    usage: list[tuple[tuple[object, ...], str]] = [
        (("--match", "logits"), "must read OUTPUT=OUTPUT"),
        (("--steps", 3, "--epochs", 2), "not both"),
        (("--jobs", 0), "must be 1 or more"),
    ]
    for options, words in usage:
        result = run(*call, "--data", samples, *options)
        assert result.exit_code == 2
        assert words in result.stderr
    errors: list[tuple[tuple[object, ...], str]] = [
        (("--match", "logits=nothing"), "has no output 'nothing'"),
        (("--loss", "nothing:at_all"), "cannot be imported"),
        (("--temperature", 0), "temperature must be above 0"),
        (("--attention", 1), "need attention"),
    ]
    for options, words in errors:
        result = run(*call, "--data", samples, *options)
        assert result.exit_code == 1
        assert words in result.stderr
    assert not out.exists()
    assert run("distill", model, student, model, "--data", samples).exit_code == 2


def two_heads(path: Path) -> Path:
    """``x (N, 16)`` to ``left (N, 5)`` and ``right (N, 5)``, weights drawn."""
    text = """<ir_version: 8, opset_import: ["": 17]>
    heads (float[N, 16] x) => (float[N, 5] left, float[N, 5] right) {
        h = Gemm(x, w, b)
        r = Relu(h)
        left = MatMul(r, l)
        right = MatMul(r, t)
    }"""
    proto = parser.parse_model(text)
    rng = np.random.default_rng(5)
    for name, shape in {"w": (16, 32), "b": (32,), "l": (32, 5), "t": (32, 5)}.items():
        values = (rng.standard_normal(shape) / 4).astype(np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(values, name))
    onnx.save(proto, path)
    return path


def test_two_teachers_teach_a_head_each(
    run: Run, model: Path, student: Path, samples: Path, tmp_path: Path
) -> None:
    heads, out = two_heads(tmp_path / "heads.onnx"), tmp_path / "out.onnx"
    call = ("distill", model, heads, out, "--data", samples, "--teacher", student)
    result = run(*call, "--match", "left=logits", "--match", "right=2:logits", *SHORT, "--json")
    assert result.exit_code == 0, result.stderr
    data = json.loads(result.stdout)
    before = {o["name"]: o["sqnr_db"] for o in data["training"]["before"]["outputs"]}
    after = {o["name"]: o["sqnr_db"] for o in data["validation"]["faithfulness"]["outputs"]}
    assert set(before) == set(after) == {"left", "right"}
    assert all(after[name] > before[name] for name in after)
    result = run(*call, *SHORT)
    assert result.exit_code == 1
    assert "say which belong together with --match" in " ".join(result.stderr.split())
