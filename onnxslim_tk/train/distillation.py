"""Distillation: a student learns from a teacher on samples, without labels if there are none."""

from collections.abc import Sequence
from typing import Any, Final

from onnxslim_tk.measure.samples import Samples
from onnxslim_tk.plan.schedule import Schedule
from onnxslim_tk.train.fit import Lesson, fit
from onnxslim_tk.train.module import GraphModule
from onnxslim_tk.train.objective import Objective
from onnxslim_tk.train.terms import AnyTerm

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
    some = [learn.feeds[k] for k in range(min(_SHOWN, len(learn)))]
    return fit(Objective(student, terms, taught, some), learn, choose, schedule, **more)


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
