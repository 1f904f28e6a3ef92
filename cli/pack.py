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
from .options import InPlace, MaybeTarget, Source, check_targets, place_of_result
from .progress import Steps
from .supervise import Isolation, supervise
from .tables import packing_table, show


def pack(
    source: Source,
    isolation: Isolation,
    result: MaybeTarget = None,
    in_place: InPlace = False,
) -> None:
    """Write IN to OUT with every value kept to the bit, in fewer bytes."""
    target = place_of_result(source, result, in_place)
    check_targets(source, {"OUT": target}, in_place)
    call = partial(_pack, source, target, in_place)
    with Steps(quiet=False) as steps:
        before, changed = supervise(call, source, isolation, steps, target)
    after = target.stat().st_size
    if changed:
        show([packing_table(packing(changed))])
    if after >= before:
        warn("the result is no smaller than the original")
    say(f"{size(before)} to {size(after)}, every value kept to the bit")


def _pack(
    source: Path, result: Path, in_place: bool, progress: Progress
) -> tuple[int, tuple[PackedTensor, ...]]:
    progress("pack", 0, 1)
    return len(read_model(source)), pipeline.pack(source, result, in_place)
