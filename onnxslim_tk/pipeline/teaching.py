"""The verbs that train: distill and finetune."""

import importlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxslim_tk.errors import TrainingError
from onnxslim_tk.pipeline.classroom import Classroom, read_data, read_teacher
from onnxslim_tk.pipeline.cutting import cut, group_counts
from onnxslim_tk.pipeline.files import parse, read_model
from onnxslim_tk.pipeline.options import Options, PathLike
from onnxslim_tk.pipeline.run import check_target
from onnxslim_tk.pipeline.trained import attempt_of, judged, written
from onnxslim_tk.plan.cuts import Cuts
from onnxslim_tk.plan.plan import StagePlan
from onnxslim_tk.plan.schedule import Schedule
from onnxslim_tk.plan.training import Training, training_data
from onnxslim_tk.report.outcome import Report

if TYPE_CHECKING:
    from onnxslim_tk.train.fit import Lesson
    from onnxslim_tk.train.module import GraphModule
    from onnxslim_tk.train.objective import Objective

_PLAIN = Options()
_USUAL = Training()
_WHOLE = Cuts()


def distill(
    teachers: PathLike | Sequence[PathLike],
    student: PathLike,
    result: PathLike,
    options: Options = _PLAIN,
    training: Training = _USUAL,
    *,
    pairs: Sequence[Mapping[str, str]] = (),
    function: Callable[..., Any] | None = None,
    checkpoint: PathLike | None = None,
) -> Report | None:
    """Let the model at ``student`` learn from one teacher or several; write it to ``result``.

    ``pairs`` say for each teacher which of its outputs belong to which of the student's, where the
    names don't; ``function`` is a loss beside those of ``training``. The result is never worse on
    the samples for choosing than the student was. Gives None in all processes of torchrun but the
    first. Raises an OnnxSlimError, with nothing written, where the models or the samples don't
    allow it.
    """
    from onnxslim_tk.train.distillation import Taught, objective_of, terms_of
    from onnxslim_tk.train.module import GraphModule
    from onnxslim_tk.train.processes import processes, threads
    from onnxslim_tk.train.write_back import write_back

    given = teachers if isinstance(teachers, Sequence) else [teachers]
    paths = [Path(given)] if isinstance(given, str) else [Path(path) for path in given]
    if not paths:
        raise TrainingError("train: at least one teacher is needed")
    started, source = time.process_time(), Path(student)
    data = read_model(source)
    for path in paths:
        check_target(path, read_model(path), Path(result), False)
    check_target(source, data, Path(result), options.in_place)
    model = parse(data)
    some = [dict(pairs[k]) if k < len(pairs) else {} for k in range(len(paths))]
    found = [read_teacher(p, model, pair) for p, pair in zip(paths, some, strict=True)]
    samples = read_data(options, data)
    room = Classroom(source, data, model, samples, options, Path(result).name, "distill", found)
    module = GraphModule(model, scales=True)
    taught = [Taught(GraphModule(teacher.model), teacher.pairs) for teacher in found]
    learn = room.parts.calibrate
    with processes() as is_first, threads(options.jobs):
        terms = terms_of(training.losses, module, taught, learn, function)
        objective = objective_of(module, terms, [each.module for each in taught], learn)
        state = None if checkpoint is None else Path(checkpoint)
        lesson = _learnt(room, objective, training, state)
        if not is_first:
            return None
        write_back(module, model)
        attempt = attempt_of(room, lesson, training_data(training))
        report = judged(room, attempt, lesson, module, started)
    return written(room, attempt, report, Path(result))


def finetune(
    source: PathLike,
    result: PathLike,
    loss: str | Callable[..., Any],
    options: Options = _PLAIN,
    training: Training = _USUAL,
    *,
    cuts: Cuts = _WHOLE,
    reassign: bool = False,
    checkpoint: PathLike | None = None,
) -> Report | None:
    """Train the model at ``source`` on labels and write it to ``result``.

    ``loss`` is cross-entropy, mse, bce, ctc, or a function of outputs, labels and teachers. What is
    stored in few numbers stays so: zeros stay zero, integers integers, and their scales are learnt;
    a codebook keeps its codes, unless ``reassign`` gives each place its nearest entry after every
    epoch. ``cuts`` are made between stretches of the training. Otherwise as :func:`distill`.
    """
    from onnxslim_tk.train.distillation import labelled_terms, objective_of, terms_of
    from onnxslim_tk.train.fit import Lesson
    from onnxslim_tk.train.module import GraphModule
    from onnxslim_tk.train.processes import processes, threads
    from onnxslim_tk.train.write_back import write_back

    if training.losses != _USUAL.losses:
        raise TrainingError(
            "train: losses in a recipe are what a teacher teaches; finetune learns the loss that "
            "it is given"
        )
    started, path = time.process_time(), Path(source)
    data = read_model(path)
    check_target(path, data, Path(result), options.in_place)
    model = parse(data)
    room = Classroom(
        path, data, model, read_data(options, data), options, Path(result).name, "finetune"
    )
    learn = room.parts.calibrate
    targets = cuts.targets()
    counts = group_counts(model, learn.feeds[0]) if cuts.keep is not None else {}
    lessons: list[Lesson] = []
    plans: list[StagePlan] = []
    module: GraphModule | None = None
    with processes() as is_first, threads(options.jobs):
        for number, target in enumerate(targets):
            name = f"round {number + 1}" if len(targets) > 1 else "cut"
            if target:
                model, done = cut(model, target, counts, learn, options, name)
                plans += done
            module = GraphModule(model, scales=True)
            if isinstance(loss, str):
                terms = labelled_terms(module, loss, learn)
            else:
                terms = terms_of(training.losses, module, (), learn, loss)
            if reassign:
                _loosen(module)
            stretch = replace(training, schedule=_part(training.schedule, len(targets)))
            state = _numbered(checkpoint, number, len(targets))
            objective = objective_of(module, terms, (), learn)
            more: dict[str, Any] = {}
            if reassign:
                more["each_epoch"] = partial(_reassign, module)
            if training.schedule.l1 and number + 1 < len(targets):
                # Small weights are what the next cut is to find, whatever they cost as yet.
                more["keep"] = "last"
            lessons.append(_learnt(room, objective, stretch, state, **more))
            write_back(module, model)
        if not is_first:
            return None
        assert module is not None
        lesson = Lesson.of(lessons)
        room.student = model
        settings = training_data(training)
        attempt = attempt_of(room, lesson, settings, plans, bool(plans))
        report = judged(room, attempt, lesson, module, started)
    return written(room, attempt, report, Path(result))


def _loosen(module: "GraphModule") -> None:
    books = [weight for weight in module.weights if weight.codes is not None]
    if not books:
        raise TrainingError(
            "train: the model has no weights of few values whose codes could be reassigned"
        )
    for weight in books:
        weight.loosen()


def _reassign(module: "GraphModule") -> None:
    for weight in module.weights:
        if weight.shadow is not None:
            weight.reassign()


def _part(schedule: Schedule, parts: int) -> Schedule:
    """One of so many equal stretches of a schedule."""
    return replace(
        schedule,
        steps=max(1, schedule.steps // parts),
        epochs=None if schedule.epochs is None else schedule.epochs / parts,
        minutes=None if schedule.minutes is None else schedule.minutes / parts,
    )


def _numbered(checkpoint: PathLike | None, number: int, count: int) -> Path | None:
    """A file for the state of each stretch."""
    if checkpoint is None:
        return None
    path = Path(checkpoint)
    return path if count == 1 else path.with_name(f"{path.name}.{number + 1}")


def load_loss(spec: str) -> Callable[..., Any]:
    """The function that ``spec`` names as ``module:function``.

    This imports the module, that is, runs its code. Raises TrainingError where there is none.
    """
    module, colon, attribute = spec.partition(":")
    if not (module and colon and attribute):
        raise TrainingError(f"train: a loss must read module:function, got {spec!r}")
    try:
        function = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, SyntaxError) as error:
        raise TrainingError(f"train: the loss {spec!r} cannot be imported: {error}") from error
    if not callable(function):
        raise TrainingError(
            f"train: the loss {spec!r} must be a function, got {type(function).__name__}"
        )
    found: Callable[..., Any] = function
    return found


def _learnt(
    room: Classroom,
    objective: "Objective",
    training: Training,
    checkpoint: Path | None,
    **more: Any,
) -> "Lesson":
    from onnxslim_tk.train.fit import Look, fit

    metric, progress = room.options.metric, room.options.progress
    progress("train", 0, 1)
    news = ["train"]

    def heard(look: Look, steps: int) -> None:
        told = f"loss {look.loss:.4g}"
        if metric is not None and look.metric is not None:
            told += f", {metric.name} {look.metric:.4g}"
        news.append(f"train | {told}")
        progress(news[-1], look.step, steps)

    return fit(
        objective,
        room.parts.calibrate,
        room.parts.choose,
        training.schedule,
        augment=training.augment,
        metric=metric,
        heard=heard,
        each_step=lambda step, steps: progress(news[-1], step, steps),
        checkpoint=checkpoint,
        **more,
    )
