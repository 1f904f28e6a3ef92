"""``pack``: the same values in fewer bytes."""

from onnxslim_tk import pipeline
from onnxslim_tk.pipeline.files import read_model
from onnxslim_tk.report.summary import packing

from .console import say, warn
from .figures import size
from .options import Source, Target, check_targets
from .progress import Steps
from .tables import packing_table, show


def pack(source: Source, result: Target) -> None:
    """Write IN to OUT with every value kept to the bit, in fewer bytes."""
    check_targets(source, {"OUT": result})
    before = len(read_model(source))
    with Steps(quiet=False) as steps:
        steps("pack", 0, 1)
        changed = pipeline.pack(source, result)
    after = result.stat().st_size
    if changed:
        show([packing_table(packing(changed))])
    if after >= before:
        warn("the result is no smaller than the original")
    say(f"{size(before)} to {size(after)}, every value kept to the bit")
