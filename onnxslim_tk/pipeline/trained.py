"""What comes of training: a result, and the report on it."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxslim_tk.pipeline.attempt import Attempt
from onnxslim_tk.pipeline.classroom import Classroom
from onnxslim_tk.pipeline.files import packed, parse, provenance, unchanged, write_file
from onnxslim_tk.pipeline.judge import judge
from onnxslim_tk.plan.plan import Plan, StagePlan
from onnxslim_tk.report.outcome import Learned, Report, Seen
from onnxslim_tk.version import VERSION

if TYPE_CHECKING:
    from onnxslim_tk.train.fit import Lesson
    from onnxslim_tk.train.module import GraphModule


def attempt_of(
    room: Classroom,
    lesson: "Lesson",
    settings: Mapping[str, Any],
    stages: Sequence[StagePlan] = (),
    is_new: bool = False,
) -> Attempt:
    """The student as it is now, packed; as it came where nothing was better.

    ``settings`` go into its provenance, ``stages`` are what was cut on the way, and ``is_new`` says
    that it isn't the model that came even so.
    """
    seed = room.options.seed
    plan = Plan(room.student.source_sha256, room.recipe, seed, tuple(stages))
    if lesson.best == 0 and not is_new:
        data = unchanged(room.student_data, room.name)
        return Attempt(data, parse(data), plan, ())
    made = {room.recipe.name: settings}
    if room.teachers:
        made["teachers"] = {str(k): t.model.source_sha256 for k, t in enumerate(room.teachers)}
    data, changed = packed(room.student, provenance(room.student, VERSION, seed, made), room.name)
    return Attempt(data, room.student, plan, tuple(changed))


def judged(
    room: Classroom, attempt: Attempt, lesson: "Lesson", module: "GraphModule", started: float
) -> Report:
    """The report on a result, with what training was and what the model was before."""
    report = judge(room, attempt, started)
    before = None
    if room.teachers:
        came = room.existing(room.student_data, room.student)
        before = room.measure(came, room.parts.judge, "judge what it was")
    looks = tuple(Seen(look.step, look.loss, look.metric) for look in lesson.looks)
    return replace(
        report,
        training=Learned(looks, lesson.best, lesson.ended, before),
        warnings=(*report.warnings, *_warnings(lesson, module)),
        seconds=time.process_time() - started,
    )


def written(room: Classroom, attempt: Attempt, report: Report, result: Path) -> Report:
    """The report, once the result is written."""
    room.options.progress("write", 0, 1)
    write_file(attempt.data, result)
    room.options.progress("write", 1, 1)
    return report


def _warnings(lesson: "Lesson", module: "GraphModule") -> list[str]:
    found = []
    if lesson.ended == "diverged":
        found.append("the loss or its gradient wasn't a number any more, which ended the training")
    if lesson.best == 0:
        found.append(
            "no state on the way was better on the samples for choosing: the result is "
            "the model as it came"
        )
    if module.detached:
        names = ", ".join(module.detached[:4])
        more = f" and {len(module.detached) - 4} more" * (len(module.detached) > 4)
        found.append(f"no gradient passes {names}{more}: these ran in onnxruntime")
    return found
