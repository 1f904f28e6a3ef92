"""A workshop for training: a student is judged beside its teachers, and beside what it was."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from onnxslim_tk.errors import CalibrationError, TrainingError
from onnxslim_tk.graph.model import Model, to_stored
from onnxslim_tk.graph.stored import Stored
from onnxslim_tk.measure.fidelity import compare
from onnxslim_tk.measure.metrics import paired_drop
from onnxslim_tk.measure.runtime import Feed, Session
from onnxslim_tk.measure.samples import Samples, Split, read_samples, split
from onnxslim_tk.measure.validate import Faithfulness
from onnxslim_tk.pipeline.attempt import Attempt, Workshop
from onnxslim_tk.pipeline.files import parse, read_model
from onnxslim_tk.pipeline.options import Options
from onnxslim_tk.plan.budget import Check
from onnxslim_tk.plan.recipe import Recipe

_PARTS: Final = 8
"""Of so many parts of the samples one is for choosing and one for judging."""
_HEALTH: Final = ("non-finite values", "collapsed slices")


@dataclass(frozen=True, slots=True)
class Teacher:
    """A teacher, and which of its outputs belongs to which of the student's, by these."""

    data: Stored
    model: Model
    pairs: Mapping[str, str]


class Classroom(Workshop):
    """A model that trains, its samples split, beside the teachers or beside itself as it was.

    ``teachers`` may be none; then the original is the model itself. Without limits of the user's
    only outputs that broke count against the result.
    """

    def __init__(
        self,
        source: Path,
        data: Stored,
        model: Model,
        samples: Samples,
        options: Options,
        name: str,
        job: str,
        teachers: Sequence[Teacher] = (),
    ) -> None:
        first = teachers[0] if teachers else None
        super().__init__(
            source,
            first.data if first else data,
            first.model if first else model,
            Session(data).inputs,
            Recipe(job, ()),
            samples,
            options,
            name,
        )
        self.student, self.student_data, self.teachers = model, data, tuple(teachers)

    @cached_property
    def parts(self) -> Split:
        """The samples split three ways: most of them to learn from."""
        assert self.samples is not None
        return split(self.samples, self.options.seed, _PARTS)

    def measure(self, attempt: Attempt, samples: Samples, step: str) -> Faithfulness:
        """What the teachers say and what the attempt says, side by side."""
        if not self.teachers:
            return super().measure(attempt, samples, step)
        progress, metric = self.options.progress, self.options.metric
        sessions = [Session(teacher.data) for teacher in self.teachers]

        def taught(feed: Feed) -> dict[str, Any]:
            said: dict[str, Any] = {}
            for teacher, session in zip(self.teachers, sessions, strict=True):
                found = session.run({i.name: feed[i.name] for i in session.inputs})
                said |= {mine: found[theirs] for mine, theirs in teacher.pairs.items()}
            return said

        found = compare(
            taught,
            Session(attempt.data).run,
            samples,
            self.options.kinds,
            lambda done, total: progress(step, done, total),
            keep_primary=metric is not None,
        )
        drop = None
        if metric is not None and samples.labels is not None:
            pair = found.original_primary, found.result_primary
            drop = paired_drop(metric, *pair, samples.labels, self.options.seed)
        name = metric.name if drop is not None and metric is not None else None
        return Faithfulness(found.outputs, name, drop, len(samples))

    def checks(self, found: Faithfulness | None, attempt: Attempt) -> tuple[Check, ...]:
        """The user's limits, and outputs that broke."""
        checks = super().checks(found, attempt)
        if self.budget.has_limits:
            return checks
        return tuple(c for c in checks if c.figure in (*_HEALTH, "bytes") or c.subject == "layers")


def read_data(options: Options, data: Stored) -> Samples:
    """The samples that a run trains on; raises CalibrationError where there are none."""
    found = options.calibration
    if found is None:
        raise CalibrationError("samples: training needs samples, none are given")
    if not isinstance(found, Samples):
        inputs = Session(data).inputs
        found = read_samples(Path(found), inputs, options.images, options.limit, options.seed)
    if options.metric is not None and found.labels is None:
        raise CalibrationError(f"metric: {options.metric.name} needs samples with labels")
    return found


def read_teacher(path: Path, student: Model, pairs: Mapping[str, str]) -> Teacher:
    """The teacher at ``path``; ``pairs`` tell which of its outputs belong to the student's.

    Its only input is called as the student's is. Raises TrainingError where inputs or outputs
    don't match.
    """
    data = read_model(path)
    model = parse(data)
    mine, theirs = ([t.name for t in m.graph.inputs] for m in (student, model))
    if mine != theirs and len(mine) == len(theirs) == 1:
        model.graph.inputs[0].name = mine[0]
        data = to_stored(model)
    elif set(theirs) - set(mine):
        raise TrainingError(
            f"train: the teacher {path.name} needs the input {min(set(theirs) - set(mine))!r}, "
            f"which the student hasn't; it has {', '.join(mine)}"
        )
    return Teacher(data, model, matched(path.name, student, model, pairs))


def matched(name: str, student: Model, teacher: Model, pairs: Mapping[str, str]) -> dict[str, str]:
    """Which output of a teacher belongs to which of the student's.

    ``pairs`` if there are any, else those of one name, else the only ones.
    """
    mine, theirs = ([t.name for t in m.graph.outputs] for m in (student, teacher))
    for left, right in pairs.items():
        if left not in mine:
            raise TrainingError(
                f"train: the student has no output {left!r}; it has {', '.join(mine)}"
            )
        if right not in theirs:
            raise TrainingError(
                f"train: the teacher {name} has no output {right!r}; it has {', '.join(theirs)}"
            )
    found = dict(pairs) or {output: output for output in mine if output in theirs}
    if not found and len(mine) == len(theirs) == 1:
        found = {mine[0]: theirs[0]}
    if not found:
        raise TrainingError(
            f"train: no output of the teacher {name} ({', '.join(theirs)}) has the name of one of "
            f"the student's ({', '.join(mine)}); say which belong together with --match"
        )
    return found
