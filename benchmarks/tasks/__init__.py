"""True metrics on real models: one module a task."""

from collections.abc import Mapping
from typing import Final

from benchmarks.tasks.digits import Digits
from benchmarks.tasks.evaluation import Evaluation
from benchmarks.tasks.filetype import FileTypes
from benchmarks.tasks.imagenet import Photographs
from benchmarks.tasks.made_up import Layouts, Molecules, Pictures, Sentences
from benchmarks.tasks.pages import Orientation, TextBoxes
from benchmarks.tasks.pitch import Pitch
from benchmarks.tasks.similarity import Similarity
from benchmarks.tasks.text_lines import LineOrientation, TextLines, WholeLines
from benchmarks.tasks.voice import Voice

TASKS: Final[Mapping[str, type[Evaluation]]] = {
    task.name: task
    for task in (
        Digits,
        FileTypes,
        Layouts,
        LineOrientation,
        Molecules,
        Orientation,
        Photographs,
        Pictures,
        Pitch,
        Sentences,
        Similarity,
        TextBoxes,
        TextLines,
        Voice,
        WholeLines,
    )
}
"""Every task by name."""
