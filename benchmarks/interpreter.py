"""Proves the interpreter of ``onnxslim_tk.train`` on real models, and times it beside PyTorch.

    python benchmarks/interpreter.py graphs --models magika,crepe-tiny
    python benchmarks/interpreter.py graphs --models crepe-tiny --files small.onnx,balanced.onnx
    python benchmarks/interpreter.py steps

``graphs`` compares each file's module with onnxruntime on samples of the model's task: outputs,
gradients, and what is written back after the weights have moved. ``--files`` takes other files of
the same inputs, such as compressed ones, in place of the model's own. ``steps`` times a step of
training of two nets beside the same step of the PyTorch module that they were exported from, in
turn, on one thread.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Final

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch

from benchmarks.catalogue import CATALOGUE, ready
from benchmarks.graph_proof import Proof, prove
from benchmarks.rows import commit_of_code
from benchmarks.sources import SourceError
from benchmarks.step_time import STEPS, step_ratio
from benchmarks.tables import markdown
from onnxslim_tk.errors import OnnxSlimError
from onnxslim_tk.measure.runtime import Session

DATA: Final = Path(__file__).resolve().parents[1] / "models"
MODELS: Final = (
    "ppocr-v4-rec,ppocr-v4-det,ppocr-v4-cls,magika,silero-vad,silero-vad-16k,silero-vad-ifless,"
    "minilm-l6,efficientnet-lite0,crepe-tiny,lac,orientation"
)
_HEADER: Final = (
    "file",
    "outputs",
    "onnxruntime's own",
    "written back",
    "gradient",
    "tensors",
    "elements",
    "not run",
    "no gradient",
    "of these felt",
    "without a rule",
)


def main() -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=("graphs", "steps"))
    parser.add_argument("--models", default=MODELS, help="names, joined by commas")
    parser.add_argument("--files", default="", help="files of one model, joined by commas")
    parser.add_argument("--data", type=Path, default=DATA, help="folder for models and data")
    parser.add_argument("--samples", type=int, default=8, help="samples a model (8)")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    print(f"commit {commit_of_code()}, torch {torch.__version__}", file=sys.stderr)
    if asked.what == "steps":
        rows = [[name, *step_ratio(name)] for name in STEPS]
        print(markdown(["net", "PyTorch ms", "ours ms", "ratio"], rows), end="")
        return 0
    files = [Path(name) for name in asked.files.split(",") if name]
    rows, good = [], True
    for name in asked.models.split(","):
        try:
            source, task = ready(CATALOGUE[name], asked.data)
            feeds = task.calibration(Session(source), asked.samples)[: asked.samples]
            for path in files or [source]:
                proof = prove(path, feeds)
                good = good and proof.holds
                rows.append(_cells(path.stem if files else name, proof))
                print(" | ".join(rows[-1]), *proof.notes, sep="\n", file=sys.stderr, flush=True)
        except (SourceError, OnnxSlimError, KeyError) as error:
            print(f"{name}: {error}", file=sys.stderr)
            good = False
    print(markdown(_HEADER, rows), end="")
    return 0 if good else 1


def _cells(name: str, proof: Proof) -> list[str]:
    return [
        name,
        f"{proof.outputs:.1e}",
        f"{proof.rounding:.1e}",
        f"{proof.written:.1e}",
        "not comparable" if proof.gradient is None else f"{proof.gradient:.1e}",
        str(proof.tensors),
        str(proof.elements),
        str(proof.not_run),
        str(proof.silent),
        str(proof.felt),
        ", ".join(proof.without_rule) or "none",
    ]


if __name__ == "__main__":
    sys.exit(main())
