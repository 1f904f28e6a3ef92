"""``pack``: the same values in fewer bytes."""

from functools import partial
from pathlib import Path

from onnxslim_tk import pipeline
from onnxslim_tk.measure.validate import Progress
from onnxslim_tk.packing import PackedTensor
from onnxslim_tk.pipeline.files import read_model
from onnxslim_tk.report.summary import packing

from .console import say, warn
from .figures import size
from .options import Source, Target, check_targets
from .progress import Steps
from .supervise import Isolation, supervise
from .tables import packing_table, show


def pack(source: Source, result: Target, isolation: Isolation) -> None:
    """Write IN to OUT with every value kept to the bit, in fewer bytes."""
    check_targets(source, {"OUT": result})
    call = partial(_pack, source, result)
    with Steps(quiet=False) as steps:
        before, changed = supervise(call, source, isolation, steps, result)
    after = result.stat().st_size
    if changed:
        show([packing_table(packing(changed))])
    if after >= before:
        warn("the result is no smaller than the original")
    say(f"{size(before)} to {size(after)}, every value kept to the bit")


def _pack(source: Path, result: Path, progress: Progress) -> tuple[int, tuple[PackedTensor, ...]]:
    progress("pack", 0, 1)
    return len(read_model(source)), pipeline.pack(source, result)
