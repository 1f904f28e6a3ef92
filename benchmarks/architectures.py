"""Prunes every classification architecture of torchvision by a quarter; stops and goes on.

    python benchmarks/architectures.py export FOLDER    (where torch and torchvision are)
    python benchmarks/architectures.py prune FOLDER     (where onnxslim_tk is)

Weights are random: what counts is that the channels are found, and that the result runs. What is
done already is left out. ``FOLDER/results.jsonl`` has a line for each architecture.
"""

import json
import sys
import time
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

_MOST_PARAMETERS = 100e6
_KEEP = 0.75


def export(folder: Path) -> None:
    """Write each architecture as ONNX."""
    import torch

    # Builds for another torch lack the operators of detectors, which no classifier needs.
    sys.modules["torchvision._meta_registrations"] = ModuleType("torchvision._meta_registrations")
    import torchvision

    for name in torchvision.models.list_models(module=torchvision.models):
        path = folder / f"{name}.onnx"
        if path.exists():
            continue
        torch.manual_seed(0)
        model = torchvision.models.get_model(name, weights=None).eval()
        if sum(p.numel() for p in model.parameters()) > _MOST_PARAMETERS:
            continue
        size = 299 if name == "inception_v3" else 224
        begun = path.with_suffix(".part")
        example = (torch.randn(1, 3, size, size),)
        torch.onnx.export(model, example, str(begun), dynamo=False, opset_version=17)
        begun.rename(path)
        print(name, flush=True)


def prune(folder: Path) -> None:
    """Prune what is there, and say how many could be."""
    results = folder / "results.jsonl"
    lines = results.read_text().splitlines() if results.exists() else []
    done = [json.loads(line) for line in lines]
    known = {row["name"] for row in done}
    for path in sorted(folder.glob("*.onnx")):
        if path.stem not in known:
            done.append({"name": path.stem, **_pruned(path)})
            with results.open("a") as file:
                file.write(json.dumps(done[-1]) + "\n")
            print(done[-1], flush=True)
    good = [row for row in done if row["runs"]]
    print(f"{len(good)} of {len(done)} are narrower and run")
    for row in done:
        if not row["runs"]:
            print(row["name"], row["why"])


def _pruned(path: Path) -> dict[str, Any]:
    from onnxslim_tk.errors import OnnxSlimError
    from onnxslim_tk.passes import PASSES
    from onnxslim_tk.pipeline import Options, optimize
    from onnxslim_tk.plan.recipe import parse_recipe

    text = f"stages: {{clean: [clean], structure: [{{channels: {_KEEP}}}]}}"
    begun, target = time.process_time(), path.with_suffix(".pruned")
    try:
        recipe = parse_recipe(text, "a quarter", PASSES)
        report = optimize(path, target, recipe, Options())
    except OnnxSlimError as error:
        return {"runs": False, "why": str(error)}
    finally:
        target.unlink(missing_ok=True)
    refusals = [refusal.reason for stage in report.plan.stages for refusal in stage.refusals]
    rows = sum(row.method == "channels" for stage in report.plan.stages for row in stage.rows)
    figures = report.validation
    before, after = figures.original, figures.result
    return {
        "runs": rows > 0 and after.parameters < before.parameters,
        "groups": rows,
        "parameters": after.parameters / before.parameters,
        "macs": (after.macs or 0) / (before.macs or 1),
        "seconds": round(time.process_time() - begun, 1),
        "why": Counter(refusals).most_common(3),
    }


if __name__ == "__main__":
    {"export": export, "prune": prune}[sys.argv[1]](Path(sys.argv[2]))
