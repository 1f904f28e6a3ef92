"""The loop: a student learns, is looked at now and then, and keeps its best state."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from math import inf, isfinite
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from onnxslim_tk.errors import TrainingError
from onnxslim_tk.measure.fidelity import primary_output
from onnxslim_tk.measure.metrics import Metric
from onnxslim_tk.measure.samples import Samples
from onnxslim_tk.plan.augmentation import Augmentation
from onnxslim_tk.plan.schedule import Schedule
from onnxslim_tk.train.batches import Batch, Batches, endless
from onnxslim_tk.train.checkpoint import load_checkpoint, run_of, save_checkpoint
from onnxslim_tk.train.objective import Objective
from onnxslim_tk.train.optimizer import Optimizer
from onnxslim_tk.train.processes import count, gathered, rank, shared
from onnxslim_tk.train.terms import Tensors

_REMEMBERED: Final = 1 << 28
"""Bytes of what teachers say to the samples for choosing that are kept between looks."""


@dataclass(frozen=True, slots=True)
class Look:
    """A state as the samples for choosing see it: its step, loss, and metric if there is one."""

    step: int
    loss: float
    metric: float | None = None


@dataclass(frozen=True, slots=True)
class Lesson:
    """What came of it: all looks, the step whose state is kept, and why learning ended.

    Step 0 is the student as it came. ``ended`` is one of steps, minutes, patience, diverged.
    """

    looks: tuple[Look, ...]
    best: int
    ended: str = "steps"

    @classmethod
    def of(cls, lessons: Sequence["Lesson"]) -> "Lesson":
        """One lesson of several, steps counted on; what the last one kept is kept."""
        looks, offset = list[Look](), 0
        for lesson in lessons[:-1]:
            looks += [replace(look, step=look.step + offset) for look in lesson.looks]
            offset = looks[-1].step + 1
        last = lessons[-1]
        looks += [replace(look, step=look.step + offset) for look in last.looks]
        return cls(tuple(looks), last.best + offset, last.ended)

    @property
    def before(self) -> Look:
        """The student as it came."""
        return self.looks[0]

    @property
    def after(self) -> Look:
        """The state that is kept."""
        return next(look for look in self.looks if look.step == self.best)


Heard = Callable[[Look, int], None]
"""Hears of every look, and how many steps there are in all."""


def fit(
    objective: Objective,
    learn: Samples,
    choose: Samples,
    schedule: Schedule,
    *,
    augment: Sequence[Augmentation] = (),
    metric: Metric | None = None,
    heard: Heard | None = None,
    checkpoint: Path | None = None,
    each_step: Callable[[int, int], None] | None = None,
    each_epoch: Callable[[], None] | None = None,
    keep: Literal["best", "last"] = "best",
) -> Lesson:
    """Let the student of ``objective`` learn from ``learn``, in place.

    The state kept is the best on ``choose``, the first one included: a student never ends worse
    than it began. Best is the lowest loss or, with a ``metric`` and labels, the best metric and
    then the lowest loss; with ``l1`` what is left of the absolute values, times it, adds to the
    loss. With ``keep`` last the last state is kept, for weights that are to be cut next.
    ``augment`` varies what is learnt from; ``checkpoint`` is a file that the state is kept in at
    every look, and gone on from if it lies there already. ``heard`` hears of every look,
    ``each_step`` of every step and of how many there are; ``each_epoch`` is called after each. The
    same arguments and number of threads give the same weights, unless ``minutes`` end it. Raises
    TrainingError where there is nothing to learn or to learn from.
    """
    if not len(learn) or not len(choose):
        raise TrainingError("train: at least one sample of each part is needed")
    if metric is not None and choose.labels is None:
        raise TrainingError(f"train: the metric {metric.name} needs labels")
    if not any(parameter.requires_grad for parameter in objective.student.parameters()):
        raise TrainingError("train: the student has no tensor that can be trained")
    return _Fitting(objective, learn, choose, schedule, tuple(augment), metric, keep).run(
        heard, checkpoint, each_step, each_epoch
    )


class _Fitting:
    """One run of :func:`fit`."""

    def __init__(
        self,
        objective: Objective,
        learn: Samples,
        choose: Samples,
        schedule: Schedule,
        augment: Sequence[Augmentation],
        metric: Metric | None,
        keep: str,
    ) -> None:
        self.objective, self.schedule, self.metric = objective, schedule, metric
        self._keeps_last = keep == "last"
        self.learn = Batches(learn, objective, augment, schedule.seed)
        self.choose = Batches(choose, objective)
        self.length = schedule.length(len(learn))
        self.optimizer = Optimizer(objective, schedule)
        # A run may be given more time, or more patience, as it goes on.
        lasting = replace(schedule, minutes=None, patience=1)
        by = None if metric is None else metric.name
        self._facts = (lasting, tuple(augment), len(choose), count(), keep, by)
        self._told: dict[tuple[int, ...], list[Tensors]] = {}
        self._room = _REMEMBERED
        self._module = shared(objective)
        self._size = self.optimizer.absolute()
        self._spent = 0.0

    def run(
        self,
        heard: Heard | None,
        checkpoint: Path | None,
        each_step: Callable[[int, int], None] | None,
        each_epoch: Callable[[], None] | None,
    ) -> Lesson:
        """The whole loop."""
        run = ""
        if checkpoint is not None:
            run = run_of(self.objective, self.learn.samples, *self._facts)
        state = None if checkpoint is None else load_checkpoint(checkpoint, run)
        looks, best, kept = [self._look(0)], 0, self.optimizer.current()
        if state is not None:
            self.optimizer.restore(state["optimizer"])
            looks = [Look(*look) for look in state["looks"]]
            best, kept, self._spent = state["best"], state["kept"], state["spent"]
        elif heard is not None:
            heard(looks[0], self.length)
        ended, started = "steps", time.monotonic() - self._spent
        epoch = self.schedule.epoch_steps(len(self.learn.samples))
        while self.optimizer.steps < self.length:
            self._spent = time.monotonic() - started
            share = self._share()
            out_of_time = share >= 1
            if not out_of_time and not self._learn(share):
                ended = "diverged"
                break
            step = self.optimizer.steps
            if each_step is not None:
                each_step(step, self.length)
            if each_epoch is not None and step % epoch == 0:
                each_epoch()
            due = step % self.schedule.every == 0 or step == self.length
            if step > looks[-1].step and (due or out_of_time):
                looks.append(self._average_look(step))
                if heard is not None:
                    heard(looks[-1], self.length)
                if self._is_better(looks[-1], looks[:-1]):
                    best, kept = step, self.optimizer.averaged()
                if checkpoint is not None and rank() == 0:
                    save_checkpoint(checkpoint, run, self._state(looks, best, kept))
            if out_of_time:
                ended = "minutes"
                break
            if step - best >= self.schedule.patience * self.schedule.every:
                ended = "patience"
                break
        self.optimizer.put(kept)
        return Lesson(tuple(looks), best, ended)

    def _state(self, looks: Sequence[Look], best: int, kept: Sequence[Any]) -> dict[str, Any]:
        return {
            "optimizer": self.optimizer.state(),
            "looks": [(look.step, look.loss, look.metric) for look in looks],
            "best": best,
            "kept": list(kept),
            "spent": self._spent,
        }

    def _share(self) -> float:
        """How much of the way is done, in all processes alike."""
        share = self.optimizer.steps / self.length
        if self.schedule.minutes is not None:
            share = max(share, self._spent / 60 / self.schedule.minutes)
            share = gathered(share)[0]
        return share

    def _learn(self, share: float) -> bool:
        """One step; False where the loss or the gradient isn't a number any more."""
        self.optimizer.forget()
        size = max(self.schedule.batch // count(), 1)
        total = len(self.learn.samples)
        first = self.optimizer.steps * size * count()
        rows = list(islice(endless(total, self.schedule.seed, first), size * count()))
        mine = rows[rank() :: count()]
        # A step may end one turn and begin the next.
        turns = [(first + k) // total for k in range(len(rows))][rank() :: count()]
        parts = [(batch, len(batch.rows) / size) for batch in self.learn.of(mine, turns)]
        # Processes meet once a step, so all of it has to be one run there.
        runs = [parts] if count() > 1 else [[part] for part in parts]
        for some in runs:
            loss = self._module([self._part(batch, weight) for batch, weight in some])
            if not bool(torch.isfinite(loss)) and count() == 1:
                return False
            if loss.requires_grad:
                loss.backward()
        return self.optimizer.step(share)

    def _part(self, batch: Batch, share: float) -> tuple[Any, ...]:
        return batch.feed, self.objective.taught(batch.feed), batch.labels, share

    def _average_look(self, step: int) -> Look:
        """A look at the averaged weights."""
        current = self.optimizer.current()
        self.optimizer.put(self.optimizer.averaged())
        found = self._look(step)
        self.optimizer.put(current)
        return found

    def _look(self, step: int) -> Look:
        """The mean loss over the samples for choosing, and the metric."""
        size = len(self.choose.samples)
        mine = list(range(size))[rank() :: count()]
        total, outputs = 0.0, dict[int, NDArray[Any]]()
        with torch.no_grad():
            for start in range(0, len(mine), self.schedule.batch):
                for batch in self.choose.of(mine[start : start + self.schedule.batch]):
                    told = self._remembered(batch)
                    loss, found = self.objective.loss(batch.feed, told, batch.labels)
                    total += float(loss) * len(batch.rows)
                    if self.metric is not None:
                        outputs.update(_primary(found, batch.rows))
        shares = gathered((total, outputs))
        mean = sum(part for part, _ in shares) / size
        metric = None
        if self.metric is not None and self.choose.samples.labels is not None:
            every = {row: value for _, part in shares for row, value in part.items()}
            ordered = [every[row] for row in range(size)]
            metric = float(self.metric(ordered, self.choose.samples.labels))
        if self.schedule.l1 and self._size:
            mean += self.schedule.l1 * self.optimizer.absolute() / self._size
        return Look(step, mean if isfinite(mean) else inf, metric)

    def _remembered(self, batch: Batch) -> list[Tensors]:
        """What teachers say to samples for choosing, which is the same at every look."""
        if batch.rows in self._told:
            return self._told[batch.rows]
        told = self.objective.taught(batch.feed)
        size = sum(value.nbytes for part in told for value in part.values())
        if size <= self._room:
            self._room -= size
            self._told[batch.rows] = told
        return told

    def _is_better(self, look: Look, others: Sequence[Look]) -> bool:
        if self._keeps_last and look.loss < inf:
            return True
        return all(self._rank(look) > self._rank(other) for other in others)

    def _rank(self, look: Look) -> tuple[float, float]:
        if look.metric is None or self.metric is None:
            return (-look.loss, 0.0)
        if not isfinite(look.metric):
            return (-inf, -look.loss)
        return (look.metric if self.metric.higher_is_better else -look.metric, -look.loss)


def _primary(outputs: Tensors, rows: Sequence[int]) -> Iterator[tuple[int, NDArray[Any]]]:
    """The output that a metric scores, one array a sample as the runtime gives it."""
    arrays = {name: np.asarray(value) for name, value in outputs.items()}
    value = arrays[primary_output(arrays)]
    parts = np.split(value, len(rows)) if len(rows) > 1 else [value]
    yield from zip(rows, parts, strict=True)
