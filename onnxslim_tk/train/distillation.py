"""Distillation: a student learns from a teacher on samples without labels."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import cos, inf, isfinite, pi
from typing import Final

import numpy as np
import torch

from onnxslim_tk.errors import TrainingError
from onnxslim_tk.measure.runtime import Feed
from onnxslim_tk.train.losses import Term, loss_of
from onnxslim_tk.train.module import GraphModule
from onnxslim_tk.train.rules import Tensor

_FLOOR: Final = 0.01
"""What is left of the rate at the end."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """How long and how fast to learn.

    ``batch`` samples a step; ``rate`` rises during the ``warm_up`` share of steps and falls along
    a cosine. Gradients are cut to the norm ``clip``; weights are averaged over steps with
    ``average``. Every ``every`` steps the loss on the samples for choosing is looked at; after
    ``patience`` looks without a better one learning ends. Raises TrainingError for settings out
    of range.
    """

    steps: int = 300
    batch: int = 16
    rate: float = 3e-4
    warm_up: float = 0.1
    weight_decay: float = 0.0
    clip: float = 1.0
    average: float = 0.98
    every: int = 25
    patience: int = 6
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "every", "patience"):
            if getattr(self, name) < 1:
                raise TrainingError(f"train: {name} must be at least 1, got {getattr(self, name)}")
        for name in ("rate", "clip"):
            if not 0 < getattr(self, name) < inf:
                raise TrainingError(f"train: {name} must be above 0, got {getattr(self, name)}")
        for name in ("warm_up", "average", "weight_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise TrainingError(f"train: {name} must be in [0, 1), got {getattr(self, name)}")

    def rate_at(self, step: int) -> float:
        """The rate of step number ``step``, the first being 0 (Loshchilov and Hutter, 2017)."""
        rising = self.warm_up * self.steps
        if step < rising:
            return self.rate * (step + 1) / (rising + 1)
        share = (step - rising) / max(self.steps - rising, 1)
        return self.rate * (_FLOOR + (1 - _FLOOR) * (1 + cos(pi * share)) / 2)


@dataclass(frozen=True, slots=True)
class Lesson:
    """What came of it: the loss on the samples for choosing by step, and the step that is kept.

    Step 0 is the student as it came.
    """

    losses: tuple[tuple[int, float], ...]
    best: int


def distill(
    student: GraphModule,
    teacher: GraphModule,
    terms: Sequence[Term],
    calibrate: Sequence[Feed],
    choose: Sequence[Feed],
    schedule: Schedule,
    progress: Callable[[int, float], None] | None = None,
) -> Lesson:
    """Let ``student`` learn ``terms`` from ``teacher`` on ``calibrate``, in place.

    The state kept is the best on ``choose``, the first one included: a student never ends worse
    than it began. ``progress`` hears of every look, the step and the loss. The same arguments and
    number of threads give the same weights. Raises TrainingError where there is nothing to learn
    or to learn from.
    """
    if not terms or not len(calibrate) or not len(choose):
        raise TrainingError("train: at least one term and one sample of each part are needed")
    parameters = [parameter for parameter in student.parameters() if parameter.requires_grad]
    if not parameters:
        raise TrainingError("train: the student has no tensor that can be trained")
    looks = list(_batches(choose, list(range(len(choose))), schedule.batch, student, teacher))
    lessons = [(feed, size, _taught(teacher, terms, feed)) for feed, size in looks]
    optimizer = torch.optim.AdamW(parameters, weight_decay=schedule.weight_decay)
    averages = [parameter.detach().clone() for parameter in parameters]
    kept, best, found = averages, 0, [(0, _look(student, terms, lessons))]
    order = _endless(len(calibrate), schedule.seed)
    for step in range(schedule.steps):
        rows = [next(order) for _ in range(schedule.batch)]
        for group in optimizer.param_groups:
            group["lr"] = schedule.rate_at(step)
        if not _learn(student, teacher, terms, calibrate, rows, optimizer, schedule.clip):
            break
        # At first, an average of few steps would mostly be the beginning.
        share = min(schedule.average, (1 + step) / (10 + step))
        averages = [share * a + (1 - share) * p.detach() for a, p in _pairs(averages, parameters)]
        if (step + 1) % schedule.every and step + 1 < schedule.steps:
            continue
        current = [parameter.detach().clone() for parameter in parameters]
        _put(parameters, averages)
        found.append((step + 1, _look(student, terms, lessons)))
        _put(parameters, current)
        if progress is not None:
            progress(*found[-1])
        if found[-1][1] < min(loss for _, loss in found[:-1]):
            kept, best = averages, step + 1
        elif step + 1 - best >= schedule.patience * schedule.every:
            break
    _put(parameters, kept)
    return Lesson(tuple(found), best)


def _learn(
    student: GraphModule,
    teacher: GraphModule,
    terms: Sequence[Term],
    samples: Sequence[Feed],
    rows: list[int],
    optimizer: torch.optim.Optimizer,
    clip: float,
) -> bool:
    """One step; False where the loss or the gradient isn't a number any more."""
    optimizer.zero_grad(set_to_none=True)
    for feed, size in _batches(samples, rows, len(rows), student, teacher):
        taught = _taught(teacher, terms, feed)
        loss = loss_of(terms, student(feed, [term.student for term in terms]), taught)
        if not bool(torch.isfinite(loss)):
            return False
        if loss.requires_grad:
            (loss * (size / len(rows))).backward()
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    norm = torch.nn.utils.clip_grad_norm_(parameters, clip)
    if not bool(torch.isfinite(norm)):
        return False
    optimizer.step()
    return True


def _taught(teacher: GraphModule, terms: Sequence[Term], feed: Feed) -> dict[str, Tensor]:
    with torch.no_grad():
        return teacher(feed, [term.wanted for term in terms])


def _look(
    student: GraphModule,
    terms: Sequence[Term],
    lessons: Sequence[tuple[Feed, int, dict[str, Tensor]]],
) -> float:
    """The mean loss over the samples for choosing."""
    names = [term.student for term in terms]
    total = 0.0
    with torch.no_grad():
        for feed, size, taught in lessons:
            total += size * float(loss_of(terms, student(feed, names), taught))
    mean = total / sum(size for _, size, _ in lessons)
    return mean if isfinite(mean) else inf


def _batches(
    samples: Sequence[Feed], rows: list[int], batch: int, *modules: GraphModule
) -> Iterator[tuple[Feed, int]]:
    """The samples ``rows``, laid together where they and the modules allow it, and how many."""
    for start in range(0, len(rows), batch):
        feeds = [samples[row] for row in rows[start : start + batch]]
        shapes = {tuple((name, np.shape(v)) for name, v in feed.items()) for feed in feeds}
        if all(module.joins for module in modules) and len(shapes) == 1:
            names = feeds[0]
            yield {n: np.concatenate([np.asarray(f[n]) for f in feeds]) for n in names}, len(feeds)
        else:
            yield from ((feed, 1) for feed in feeds)


def _endless(count: int, seed: int) -> Iterator[int]:
    """All samples in random order, again and again."""
    rng = np.random.default_rng(seed)
    while True:
        yield from map(int, rng.permutation(count))


def _pairs(
    averages: Sequence[Tensor], parameters: Sequence[Tensor]
) -> Iterator[tuple[Tensor, Tensor]]:
    return zip(averages, parameters, strict=True)


def _put(parameters: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    with torch.no_grad():
        for value, parameter in _pairs(values, parameters):
            parameter.copy_(value)
