"""``demo``: the main job on the built-in model."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from onnxslim_tk import pipeline
from onnxslim_tk.demo import CALIBRATION, MODEL, TEST
from onnxslim_tk.measure.metrics import METRICS
from onnxslim_tk.pipeline import Options

from .options import Showing
from .outcome import deliver
from .progress import Steps


def demo(
    showing: Showing,
    keep: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Keep the result in this folder.")
    ] = None,
    recipe: Annotated[
        str, typer.Option(metavar="NAME|FILE", help="light, balanced, small, or a YAML file.")
    ] = "balanced",
) -> None:
    """Compress a small classifier of digits, and judge it on images that it never saw."""
    with _folder(keep) as folder, Steps(showing.silent) as steps:
        options = Options(calibration=CALIBRATION, metric=METRICS["accuracy"], progress=steps)
        result = folder / MODEL.name
        made = pipeline.optimize(MODEL, result, recipe, options)
        report = pipeline.validate(MODEL, result, replace(options, calibration=TEST))
    from_making = replace(
        report, recipe=made.recipe, plan=made.plan, packed=made.packed, warnings=made.warnings
    )
    deliver(from_making, showing, {})


@contextmanager
def _folder(keep: Path | None) -> Iterator[Path]:
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        yield keep
        return
    with tempfile.TemporaryDirectory(prefix="onnxslim-demo-") as folder:
        yield Path(folder)
