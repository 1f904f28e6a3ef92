"""Measures what each form of factorization misses of each layer, beside the SVD of as many numbers.

The error is that of the layer's output on calibration samples, relative to the output's mean
square; every form gets as many numbers as fit in the share kept, so that columns compare::

    python benchmarks/forms.py --models crepe-tiny,digits-mnist --keep 0.5
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.catalogue import Entry, chosen, ready
from benchmarks.sources import SourceError
from benchmarks.tables import markdown
from benchmarks.zoo import arguments
from onnxslim_tk.errors import OnnxSlimError
from onnxslim_tk.graph.layers import Layer, layers
from onnxslim_tk.measure.moments import Moments
from onnxslim_tk.measure.observe import observe
from onnxslim_tk.measure.runtime import Session
from onnxslim_tk.pipeline.files import parse, read_model
from onnxslim_tk.recover.forms import FORMS, form_error, run_obstacle

MODELS: Final = ("crepe-tiny", "digits-mnist")
SMALLEST: Final = 256


def main() -> int:
    """Run what the command line asks for."""
    given = arguments(__doc__ or "")
    given.add_argument("--keep", type=float, default=0.5, help="share of the numbers kept (0.5)")
    asked = given.parse_args()
    try:
        for entry in chosen(asked.models, MODELS):
            rows = list(_rows(entry, asked.data, asked.samples, asked.keep, asked.seed))
            print(f"### {entry.name}\n")
            print(markdown(["layer", "shape", "numbers kept", "plain SVD", *FORMS], rows))
    except (SourceError, OnnxSlimError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _rows(
    entry: Entry, data: Path, samples: int | None, keep: float, seed: int
) -> Iterator[list[str]]:
    path, task = ready(entry, data)
    feeds = task.calibration(Session(path), samples or task.calibration_items)
    model = parse(read_model(path))
    seen = observe(model, feeds, frozenset({"mean", "covariance"}), seed).moments
    for layer in layers(model):
        if layer.id in seen and not run_obstacle(layer) and not layer.obstacle(SMALLEST):
            yield _row(layer, seen[layer.id], keep)


def _row(layer: Layer, moments: Moments, keep: float) -> list[str]:
    second = None if moments.second is None else moments.second[0]
    count = keep * layer.size
    shape = "x".join(map(str, layer.shape))
    cells = [layer.id, shape, str(int(count))]
    for name, known in [("channel", None), *((name, second) for name in FORMS)]:
        form = FORMS[name]
        rank = 0 if form.obstacle(layer) else form.rank(layer, count, 1)
        if not rank:
            cells.append("")
            continue
        parts = form.split(layer, rank, known)
        cells.append(f"{form_error(layer, form, parts, second):.3f}")
    return cells


if __name__ == "__main__":
    sys.exit(main())
