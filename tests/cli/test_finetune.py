import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import Result

pytest.importorskip("torch", reason="the extra train isn't installed")

from onnxslim_tk import load

Run = Callable[..., Result]
SHORT = ("--steps", 60, "--every", 20, "--rate", 0.003, "--json")


def compressed(run: Run, model: Path, tmp_path: Path, *settings: object) -> Path:
    """The model through one method, whatever that costs it."""
    recipe, out = tmp_path / "cut.yaml", tmp_path / "cut.onnx"
    recipe.write_text("stages: {one: [" + ", ".join(map(str, settings)) + "]}")
    limits = ("--min-sqnr", -99, "--min-agreement", 0)
    data = tmp_path / "samples.npz"
    result = run("optimize", model, out, "--recipe", recipe, "--data", data, *limits)
    assert result.exit_code == 0, result.stderr
    return out


def tuned(run: Run, source: Path, samples: Path, *options: object) -> tuple[dict[str, Any], Path]:
    out = source.with_name("tuned.onnx")
    result = run("finetune", source, out, "--data", samples, *SHORT, *options)
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout), out


def weights(path: Path) -> list[Any]:
    tensors = load(path).graph.tensors().values()
    return [t.values for t in tensors if hasattr(t, "values") and t.values.ndim == 2]


def learnt(data: dict[str, Any]) -> tuple[float, float]:
    looks = data["training"]["looks"]
    best = next(look for look in looks if look["step"] == data["training"]["best"])
    return looks[0]["loss"], best["loss"]


def test_zeros_stay_zero(run: Run, model: Path, samples: Path, tmp_path: Path) -> None:
    source = compressed(run, model, tmp_path, "{sparsify: {sparsity: 0.7, recover: false}}")
    data, out = tuned(run, source, samples)
    before, after = learnt(data)
    assert after < before
    for old, new in zip(weights(source), weights(out), strict=True):
        assert ((new == 0) >= (old == 0)).all()
        assert (new != old).any()


@pytest.mark.parametrize("codes", ["fixed", "reassigned"])
def test_shared_weights_stay_shared(
    run: Run, model: Path, samples: Path, tmp_path: Path, codes: str
) -> None:
    source = compressed(run, model, tmp_path, "{share: {clusters: 6, scaled: false}}")
    data, out = tuned(run, source, samples, "--codes", codes)
    assert np.subtract(*learnt(data)) > 0
    old, new = max(weights(source), key=np.size), max(weights(out), key=np.size)
    assert len(np.unique(new)) <= len(np.unique(old)) <= 6
    same = all(len(np.unique(new[old == value])) == 1 for value in np.unique(old))
    assert same == (codes == "fixed")


def test_integers_stay_integers_and_their_scales_are_learnt(
    run: Run, model: Path, samples: Path, tmp_path: Path
) -> None:
    source = compressed(run, model, tmp_path, "{quantize: {weight_bits: 3, feedback: false}}")
    data, out = tuned(run, source, samples)
    assert np.subtract(*learnt(data)) > 0

    def stored(path: Path, kind: str) -> list[Any]:
        tensors = load(path).graph.tensors().values()
        found = [t.values for t in tensors if hasattr(t, "values") and t.values.ndim == 2]
        return [values for values in found if values.dtype == kind]

    codes, scales = stored(out, "int8"), stored(out, "float32")
    assert [code.shape for code in codes] == [(16, 64), (64, 5)]
    assert all(np.abs(code).max() <= 3 for code in codes)
    old = stored(source, "float32")
    assert any((a != b).any() for a, b in zip(old, scales, strict=True))
    assert all((scale > 0).all() for scale in scales)


def test_cuts_in_rounds_reach_what_was_asked_for(
    run: Run, model: Path, samples: Path, tmp_path: Path
) -> None:
    options = ("--schedule", "iterative", "--rounds", 2, "--sparsity", 0.75, "--l1", 0.01)
    data, out = tuned(run, model, samples, *options)
    methods = [row["method"] for stage in data["plan"]["stages"] for row in stage["rows"]]
    assert set(methods) == {"sparsify"}
    large = max(weights(out), key=np.size)
    assert (large == 0).mean() == pytest.approx(0.75, abs=0.02)


def test_channels_go_in_rounds(run: Run, model: Path, samples: Path) -> None:
    options = ("--schedule", "iterative", "--rounds", 2, "--keep-channels", 0.5)
    _, out = tuned(run, model, samples, *options)
    assert {w.shape for w in weights(out)} == {(16, 32), (32, 5)}


def test_l1_makes_exact_zeros(run: Run, model: Path, samples: Path) -> None:
    _, out = tuned(run, model, samples, "--l1", 1.0, "--rate", 0.01, "--ema", 0)
    assert (max(weights(out), key=np.size) == 0).mean() > 0.05


def test_a_function_of_the_user_is_a_loss(
    run: Run, model: Path, samples: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "myloss.py").write_text(
        "import torch\n\n\ndef nll(outputs, labels, taught):\n"
        "    return torch.nn.functional.cross_entropy(outputs['logits'], labels)\n"
    )
    data, _ = tuned(run, model, samples, "--loss", "myloss:nll")
    assert np.subtract(*learnt(data)) > 0


def test_the_best_metric_is_kept(run: Run, model: Path, samples: Path) -> None:
    data, _ = tuned(run, model, samples, "--metric", "accuracy")
    looks = data["training"]["looks"]
    best = next(look for look in looks if look["step"] == data["training"]["best"])
    assert best["metric"] == max(look["metric"] for look in looks)
    assert data["validation"]["faithfulness"]["metric"] == "accuracy"


def test_wrong_usage_is_told(run: Run, model: Path, samples: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    usage: list[tuple[tuple[object, ...], str]] = [
        (("--loss", "nothing"), "must be one of cross-entropy"),
        (("--rounds", 3), "needs --schedule iterative"),
    ]
    for options, words in usage:
        result = run("finetune", model, out, "--data", samples, *options)
        assert result.exit_code == 2
        assert words in result.stderr
    errors: list[tuple[tuple[object, ...], str]] = [
        (("--schedule", "iterative"), "rounds need something to cut"),
        (("--codes", "reassigned"), "no weights of few values"),
        (("--loss", "ctc"), "ctc needs an output"),
        (("--sparsity", 1), "sparsity must be in (0, 1)"),
    ]
    for options, words in errors:
        result = run("finetune", model, out, "--data", samples, *options)
        assert result.exit_code == 1
        assert words in " ".join(result.stderr.split())
    recipe = tmp_path / "training.yaml"
    recipe.write_text("losses: {hard: mse}\n")
    result = run("finetune", model, out, "--data", samples, "--recipe", recipe)
    assert result.exit_code == 1
    assert "losses in a recipe are what a teacher teaches" in " ".join(result.stderr.split())
    unlabelled = tmp_path / "unlabelled.npz"
    np.savez(unlabelled, x=np.load(samples)["x"])
    result = run("finetune", model, out, "--data", unlabelled)
    assert result.exit_code == 1
    assert "the samples have none" in result.stderr
    assert not out.exists()
