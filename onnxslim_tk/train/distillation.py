"""Distillation: a student learns from a teacher on samples, without labels if there are none."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch

from onnxslim_tk.errors import TrainingError
from onnxslim_tk.measure.runtime import Feed
from onnxslim_tk.measure.samples import Samples
from onnxslim_tk.plan.schedule import Schedule
from onnxslim_tk.plan.training import Losses
from onnxslim_tk.train.fit import Lesson, fit
from onnxslim_tk.train.matching import (
    attention,
    by_name,
    by_position,
    form_of,
    hidden,
    output_terms,
)
from onnxslim_tk.train.module import GraphModule
from onnxslim_tk.train.objective import Objective
from onnxslim_tk.train.rules import Tensor
from onnxslim_tk.train.terms import AnyTerm, Custom, Labelled, Tensors, Term

Function = Callable[[Tensors, Any, Sequence[Tensors]], Tensor]
"""A loss of the user's: of the student's outputs, labels or None, and what teachers say."""

_SHOWN: Final = 8
"""Samples that adapters begin with."""


def distill(
    student: GraphModule,
    teachers: GraphModule | Sequence[GraphModule],
    terms: Sequence[AnyTerm],
    learn: Samples,
    choose: Samples,
    schedule: Schedule,
    **more: Any,
) -> Lesson:
    """Let ``student`` learn ``terms`` from one teacher or several, in place.

    ``more`` is what :func:`onnxslim_tk.train.fit.fit` takes beside. The state kept is the best on
    ``choose``. Raises TrainingError where there is nothing to learn or to learn from.
    """
    taught = [teachers] if isinstance(teachers, GraphModule) else list(teachers)
    return fit(objective_of(student, terms, taught, learn), learn, choose, schedule, **more)


def finetune(
    model: GraphModule,
    terms: Sequence[AnyTerm],
    learn: Samples,
    choose: Samples,
    schedule: Schedule,
    **more: Any,
) -> Lesson:
    """Let ``model`` learn ``terms`` from labels alone, in place; as :func:`distill`."""
    return fit(Objective(model, terms, ()), learn, choose, schedule, **more)


@dataclass(frozen=True, slots=True)
class Taught:
    """A teacher, and which of its outputs belong to which of the student's."""

    module: GraphModule
    pairs: Mapping[str, str]


def terms_of(
    losses: Losses,
    student: GraphModule,
    teachers: Sequence[Taught],
    samples: Samples,
    function: Function | None = None,
) -> list[AnyTerm]:
    """The terms that ``losses`` ask for, and one of the user's ``function``.

    ``samples`` show what outputs hold. Raises TrainingError where something is asked for that the
    models don't have.
    """
    feeds = [samples.feeds[k] for k in range(min(_SHOWN, len(samples)))]
    terms: list[AnyTerm] = []
    share = losses.alpha / len(teachers) if teachers else 0.0
    for number, teacher in enumerate(teachers if share else ()):
        terms += _from(losses, student, teacher, feeds, number, share)
    if losses.alpha < 1:
        terms += labelled_terms(student, losses.hard, samples, 1 - losses.alpha)
    if function is not None:
        wanted = tuple((k, name) for k, t in enumerate(teachers) for name in t.pairs.values())
        labelled = samples.labels is not None
        terms.append(Custom(function, student.outputs, wanted, labelled=labelled))
    return terms


def labelled_terms(
    student: GraphModule, loss: str, samples: Samples, weight: float = 1.0
) -> list[AnyTerm]:
    """Terms that hold the student's outputs against labels.

    Of several outputs the first of floats counts, or each, where labels have a column for each.
    Raises TrainingError where there are no labels or no such outputs.
    """
    if samples.labels is None:
        raise TrainingError("train: the loss needs labels, and the samples have none")
    with torch.no_grad():
        found = student(samples.feeds[0])
    floats = [n for n, v in found.items() if torch.is_tensor(v) and v.is_floating_point()]
    if not floats:
        raise TrainingError("train: the model has no output of floats to hold against labels")
    columns = samples.labels.shape[1] if samples.labels.ndim == 2 else 0
    if loss != "ctc" and 1 < len(floats) == columns:
        each = weight / columns
        return [
            Labelled(name, loss, each, form_of(student, name), column)
            for column, name in enumerate(floats)
        ]
    return [Labelled(floats[0], loss, weight, form_of(student, floats[0]))]


def _from(
    losses: Losses,
    student: GraphModule,
    teacher: Taught,
    feeds: Sequence[Feed],
    number: int,
    share: float,
) -> list[Term]:
    """The terms that one teacher teaches."""
    module, found = teacher.module, list[Term]()
    for weight, kind in ((losses.soft, ""), (losses.logits, "logits")):
        if weight:
            found += output_terms(
                student,
                module,
                feeds,
                temperature=losses.temperature,
                weight=weight * share,
                kind=kind,
                names=teacher.pairs,
                by=number,
            )
    if losses.layers and losses.match != "none":
        found += _layers(losses, student, module, feeds[0], number, share)
    for weight, match in ((losses.attention, attention), (losses.hidden, hidden)):
        if weight:
            found += match(student, module, feeds[0], weight * share, by=number)
    return found


def _layers(
    losses: Losses,
    student: GraphModule,
    module: GraphModule,
    feed: Feed,
    number: int,
    share: float,
) -> list[Term]:
    match = by_position if losses.match == "position" else by_name
    found = match(student, module, feed, losses.layers * share, by=number)
    if not found and losses.match != "auto":
        raise TrainingError(
            f"train: no layers of student and teacher match by {losses.match}; "
            "--match-layers none does without"
        )
    return found


def objective_of(
    student: GraphModule,
    terms: Sequence[AnyTerm],
    teachers: Sequence[GraphModule],
    learn: Samples,
) -> Objective:
    """An objective whose adapters begin with the first samples."""
    some = [learn.feeds[k] for k in range(min(_SHOWN, len(learn)))]
    return Objective(student, terms, teachers, some)
