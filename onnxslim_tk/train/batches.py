"""Samples laid together for one run, with their labels."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch

from onnxslim_tk.errors import TrainingError
from onnxslim_tk.measure.samples import Samples
from onnxslim_tk.plan.augmentation import Augmentation, augmented
from onnxslim_tk.train.module import GraphModule
from onnxslim_tk.train.objective import Objective
from onnxslim_tk.train.rules import Tensor

_ALIKE: Final = 1e-3
"""Relative difference up to which samples laid together give what they give alone."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Inputs for one run, the labels that go with them, and the samples' places."""

    feed: Mapping[str, Any]
    labels: Tensor | None
    rows: tuple[int, ...]


class Batches:
    """Samples as batches for an objective: of equal shapes, where the models allow it.

    ``augment`` varies each sample anew each time, by ``seed``, its place and its turn.
    """

    def __init__(
        self,
        samples: Samples,
        objective: Objective,
        augment: Sequence[Augmentation] = (),
        seed: int = 0,
    ) -> None:
        if objective.needs_labels and samples.labels is None:
            raise TrainingError("train: the loss needs labels, and the samples have none")
        self.samples, self._augment, self._seed = samples, tuple(augment), seed
        self._labelled = samples.labels is not None
        modules = dict.fromkeys((objective.student, *objective.teachers))
        self._joins = objective.joins and all(joins_well(m, samples.feeds) for m in modules)

    def of(self, rows: Sequence[int], turns: Sequence[int] | None = None) -> Iterator[Batch]:
        """The samples at ``rows``, in as few batches as can be.

        ``turns`` say how often each of them came before.
        """
        groups: dict[Any, list[tuple[int, Mapping[str, Any]]]] = {}
        for row, turn in zip(rows, turns or [0] * len(rows), strict=True):
            feed = self._feed(row, turn)
            shapes: Any = tuple((name, np.shape(value)) for name, value in feed.items())
            label = self.samples.labels[row] if self.samples.labels is not None else ()
            key = (shapes, np.shape(label)) if self._joins else (row, turn)
            groups.setdefault(key, []).append((row, feed))
        for group in groups.values():
            yield self._laid([row for row, _ in group], [feed for _, feed in group])

    def _feed(self, row: int, turn: int) -> Mapping[str, Any]:
        feed = self.samples.feeds[row]
        if not self._augment:
            return feed
        arrays = {name: np.asarray(value) for name, value in feed.items()}
        return augmented(arrays, self._augment, np.random.default_rng([self._seed, turn, row]))

    def _laid(self, rows: list[int], feeds: list[Mapping[str, Any]]) -> Batch:
        feed = feeds[0]
        if len(feeds) > 1:
            feed = {name: np.concatenate([f[name] for f in feeds]) for name in feed}
        labels = None
        if self.samples.labels is not None:
            labels = self._labels(rows, len(next(iter(feed.values()))))
        return Batch(feed, labels, tuple(rows))

    def _labels(self, rows: list[int], size: int) -> Tensor:
        """Labels for a run of ``size``: of samples that hold several, all in a row."""
        known = self.samples.labels
        assert known is not None
        found = np.stack([np.asarray(known[row]) for row in rows])
        if found.dtype.kind not in "iufb":
            raise TrainingError(f"train: labels must be numbers, got {found.dtype}")
        each = size // len(rows)
        if each > 1 and found.ndim > 1 and found.shape[1] == each:
            found = found.reshape(size, *found.shape[2:])
        wide = np.float32 if found.dtype.kind == "f" else np.int64
        return torch.from_numpy(np.ascontiguousarray(found.astype(wide)))


def joins_well(module: GraphModule, feeds: Sequence[Mapping[str, Any]]) -> bool:
    """Whether two samples laid together give what each gives alone.

    A graph may leave the size of its first axis open and still mix or lose what lies along it.
    """
    if len(feeds) < 2:
        return False
    pair = [feeds[0], feeds[1]]
    shapes = [[np.shape(value) for value in feed.values()] for feed in pair]
    if shapes[0] != shapes[1]:
        # Of other shape than its neighbour: the same twice tells too.
        pair[1] = pair[0]
    names = module.inputs if len(module.inputs) > 1 else tuple(pair[0])
    joined = {name: np.concatenate([np.asarray(feed[name]) for feed in pair]) for name in names}
    try:
        with torch.no_grad():
            *alone, together = [module(module.named(feed)) for feed in (*pair, joined)]
    except TrainingError:
        return False
    for name, value in together.items():
        parts = [found[name] for found in alone]
        if not all(torch.is_tensor(part) and part.dim() for part in (*parts, value)):
            return False
        expected = torch.cat([part.to(torch.float64) for part in parts])
        if expected.shape != value.shape:
            return False
        size = expected.abs().max() if expected.numel() else 1.0
        if not bool(((value - expected).abs() <= _ALIKE * size).all()):
            return False
    return True


def endless(count: int, seed: int, start: int = 0) -> Iterator[int]:
    """All samples in random order, again and again, from place ``start`` of that order."""
    turn, skipped = divmod(start, count)
    while True:
        order = np.random.default_rng([seed, turn]).permutation(count)
        yield from map(int, order[skipped:])
        turn, skipped = turn + 1, 0
