"""A model sent through the whole of ``optimize``, its result beside it."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import checker

from onnxslim_tk.measure.runtime import Session, running_operators
from onnxslim_tk.measure.samples import Samples
from onnxslim_tk.pipeline import Options, optimize
from onnxslim_tk.report.outcome import Report
from tests.models import SLOW_FLOATS

Array = NDArray[Any]
Feed = Mapping[str, Array]


@dataclass(frozen=True)
class Outcome:
    """What ``optimize`` wrote, and what it says of it."""

    report: Report
    original: Path
    result: Path

    @property
    def runs(self) -> Counter[str]:
        """The operators that the runtime really runs."""
        return running_operators(self.result)

    @property
    def shrunk(self) -> float:
        """Bytes of the result to those of the original."""
        return self.result.stat().st_size / self.original.stat().st_size

    @property
    def reasons(self) -> dict[str, str]:
        """Why layers were left alone by their ids."""
        stages = self.report.plan.stages
        return {r.target: r.reason for s in stages for r in s.refusals if r.method == "quantize"}

    def both(self, feeds: Sequence[Feed]) -> Iterator[tuple[dict[str, Array], dict[str, Array]]]:
        """Outputs of the original and of the result."""
        before, after = Session(self.original), Session(self.result)
        for feed in feeds:
            yield before.run(feed), after.run(feed)

    def decibels(self, feeds: Sequence[Feed], name: str = "y", places: Any = ...) -> float:
        """Ratio of signal to noise of an output, or of some ``places`` of it, over all feeds."""
        pairs = [(a[name][places], b[name][places]) for a, b in self.both(feeds)]
        return sqnr(
            np.concatenate([a.ravel() for a, _ in pairs]),
            np.concatenate([b.ravel() for _, b in pairs]),
        )


def compressed(
    proto: onnx.ModelProto,
    feeds: Sequence[Feed] | None,
    folder: Path,
    full: bool = True,
    recipe: str = "balanced",
) -> Outcome:
    """``proto`` through a recipe; the result has passed the full checker.

    ``full`` false checks the form alone, for models whose shapes are written wrongly.
    """
    original, result = folder / "in.onnx", folder / "out.onnx"
    onnx.save(proto, original)
    checker.check_model(proto, full_check=full)
    samples = None if feeds is None else Samples(list(feeds))
    options = Options(calibration=samples, target=SLOW_FLOATS)
    report = optimize(original, result, recipe, options)
    assert report.holds
    checker.check_model(onnx.load(result), full_check=full)
    return Outcome(report, original, result)


def sqnr(reference: Array, value: Array) -> float:
    """Ratio of signal to noise in dB."""
    wide = reference.astype(np.float64)
    noise = np.square(wide - value).sum()
    return float(10 * np.log10(np.square(wide).sum() / max(noise, 1e-30)))
