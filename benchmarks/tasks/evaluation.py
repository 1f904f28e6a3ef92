"""What a task is: items in two splits, a model's answer to each, and figures of the answers."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from onnxslim_tk.measure.runtime import Feed, Session

Split = Literal["calib", "test"]

Run = Callable[[Feed], list[NDArray[Any]]]
"""A model that takes a task's feeds and gives its outputs in order."""

Scorer = Callable[[NDArray[np.int64]], float]
"""The metric of the items at some positions, repeats allowed."""


@dataclass(frozen=True, slots=True)
class Items:
    """Inputs and truths; items of one group come from one source and are resampled together."""

    feeds: list[Feed]
    truths: list[Any]
    groups: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.feeds)


class Evaluation(ABC):
    """A task; higher figures are better.

    ``data`` is the data folder, ``model`` the original's file. ``files`` are what the task needs
    from packages; ``metric`` is None where there is no truth, and ``agreement`` says what the
    share of equal answers counts.
    """

    name: ClassVar[str]
    metric: ClassVar[str | None]
    agreement: ClassVar[str] = "top-1"
    files: ClassVar[tuple[str, ...]] = ()
    test_items: ClassVar[int]
    calibration_items: ClassVar[int] = 128

    def __init__(self, data: Path, model: Path) -> None:
        self.data, self.model = data, model

    @classmethod
    def missing(cls) -> list[str]:
        """What the task needs beside ``files`` and this machine lacks, for people to install."""
        return []

    @abstractmethod
    def items(self, count: int, split: Split) -> Items:
        """``count`` items, or as many as there are; the two splits share no source."""

    @abstractmethod
    def answer(self, run: Run, feed: Feed) -> Any:
        """What the model says to one item."""

    def scorer(self, answers: Sequence[Any], truths: Sequence[Any]) -> Scorer:
        """The metric as a function of items; by default the share of right answers."""
        return mean_of([answer == truth for answer, truth in zip(answers, truths, strict=True)])

    def agree(self, original: Sequence[Any], result: Sequence[Any]) -> float:
        """How far two models' answers agree, at most 1; by default the share of equal ones."""
        return float(np.mean([a == b for a, b in zip(original, result, strict=True)]))

    def calibration(self, session: Session, count: int) -> list[Feed]:
        """Feeds of the calibration split, by the names of the model's inputs."""
        items = self.items(count, "calib")
        return [named(session, feed) for feed in items.feeds[:count]]


def named(session: Session, feed: Feed) -> Feed:
    """A task's feed by the names of a model's inputs; a single input may have any name."""
    if len(session.inputs) == 1:
        return {session.inputs[0].name: next(iter(feed.values()))}
    names = {info.name for info in session.inputs}
    return {name: array for name, array in feed.items() if name in names}


def running(session: Session) -> Run:
    """A session as tasks want it."""
    return lambda feed: list(session.run(named(session, feed)).values())


def split_of(key: object) -> Split:
    """A quarter of all keys calibrate, the rest test; the same on every machine."""
    return "calib" if hashlib.sha256(str(key).encode()).digest()[0] % 4 == 0 else "test"


def mean_of(values: Sequence[Any] | NDArray[Any]) -> Scorer:
    """The mean of one value an item."""
    array = np.asarray(values, np.float64)
    return lambda picks: float(array[picks].mean())


def ratio_of(part: Sequence[Any], whole: Sequence[Any]) -> Scorer:
    """The sum of parts over the sum of wholes."""
    parts, wholes = np.asarray(part, np.float64), np.asarray(whole, np.float64)
    return lambda picks: float(parts[picks].sum() / max(wholes[picks].sum(), 1e-12))


def singly(count: int) -> NDArray[np.int64]:
    """Groups of one item each."""
    return np.arange(count, dtype=np.int64)
