"""Samples: what a model is observed, tuned and judged on."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Final

import numpy as np

from onnxslim_tk.errors import CalibrationError
from onnxslim_tk.measure.archives import read_archive, read_archives
from onnxslim_tk.measure.feeds import Labels, LazyFeeds, spell
from onnxslim_tk.measure.images import ImageOptions, list_images, read_images
from onnxslim_tk.measure.runtime import Feed, TensorInfo

__all__ = ["ImageOptions", "Samples", "Split", "random_feed", "read_samples", "split"]

_PLAIN: Final = ImageOptions()
_ACCEPTED: Final = (
    "a .npz file, a folder of .npz files, a folder of images, or a folder of class folders"
)
# A run of a model with attention takes many times its inputs' memory.
_MOST_MADE_UP: Final = 1 << 24
# Zeros, harmless as indices, would hide every token and empty every sequence here.
_ONES: Final = ("mask", "len")


@dataclass(frozen=True, slots=True)
class Samples:
    """Inputs of a model, one feed a sample, and labels if they are known.

    ``feeds`` may read each feed when it is asked for; ``labels[i]`` goes with ``feeds[i]`` and,
    when the model runs a fixed batch of B > 1, holds B of them. ``source`` is where they came
    from. Raises CalibrationError when labels and feeds differ in number.
    """

    feeds: Sequence[Feed]
    labels: Labels | None = None
    source: str = ""

    def __post_init__(self) -> None:
        if self.labels is not None and len(self.labels) != len(self.feeds):
            raise CalibrationError(
                f"samples: {len(self.feeds)} samples need as many labels, got {len(self.labels)}"
            )

    def __len__(self) -> int:
        return len(self.feeds)

    def take(self, indices: Iterable[int]) -> "Samples":
        """The samples at ``indices``, in that order, still unread."""
        chosen = [range(len(self))[int(index)] for index in indices]
        feeds = self.feeds
        labels = None if self.labels is None else self.labels[chosen]
        return Samples(LazyFeeds(len(chosen), lambda i: feeds[chosen[i]]), labels, self.source)


@dataclass(frozen=True, slots=True)
class Split:
    """Samples to calibrate on, to choose settings by, and to judge the result with, once.

    ``overlaps`` says that there were too few to keep the three apart.
    """

    calibrate: Samples
    choose: Samples
    judge: Samples
    overlaps: bool = False


def read_samples(
    path: Path,
    inputs: Sequence[TensorInfo],
    images: ImageOptions = _PLAIN,
    limit: int | None = None,
    seed: int = 0,
) -> Samples:
    """Read the samples at ``path`` for a model with ``inputs``.

    ``path`` is a ``.npz`` file with the samples along the first axis, a folder with one
    ``.npz`` a sample, a folder of images, or a folder of class folders of images. ``limit``
    takes that many, one at random out of each of as many equal stretches, so that classes
    keep their shares. Raises CalibrationError for anything that doesn't fit.
    """
    if limit is not None and limit < 1:
        raise CalibrationError(f"samples: limit must be at least 1, got {limit}")
    if not inputs:
        raise CalibrationError("samples: the model must have inputs, it has none")
    try:
        feeds, labels = _read(path, inputs, images)
    except OSError as error:
        raise CalibrationError(f"samples: {path} cannot be read: {error.strerror}") from error
    samples = Samples(feeds, labels, str(path))
    # What is wrong with the first is mostly wrong with all: say it now, not in mid-run.
    samples.feeds[0]
    if limit is None or limit >= len(samples):
        return samples
    edges = np.arange(limit + 1) * len(samples) // limit
    return samples.take(np.random.default_rng(seed).integers(edges[:-1], edges[1:]))


def split(samples: Samples, seed: int, parts: int = 4) -> Split:
    """One of so many ``parts`` to choose, one to judge, the rest to calibrate; drawn by ``seed``.

    They are disjoint; one or two samples have to serve as all three. Raises
    CalibrationError when there are none.
    """
    count = len(samples)
    if count == 0:
        raise CalibrationError("samples: at least 1 sample is needed, got 0")
    if count < 3:
        return Split(samples, samples, samples, overlaps=True)
    order = np.random.default_rng(seed).permutation(count)
    part = max(1, count // parts)
    # Sorted, so that neighbours on disk are read as neighbours.
    choose, judge, calibrate = (
        samples.take(np.sort(some)) for some in np.split(order, [part, 2 * part])
    )
    return Split(calibrate, choose, judge)


def random_feed(inputs: Sequence[TensorInfo], seed: int, free: int = 64) -> Feed:
    """A made-up feed, for shapes and timing only when there are no samples.

    Floats are standard normal, whole numbers and truth values 0, or 1 in masks and lengths,
    text is empty. An open first axis, and any axis of the same symbol, is 1; other open axes
    are ``free``. Raises CalibrationError for an input that isn't a tensor numpy can hold, or is
    too large to be made up.
    """
    rng = np.random.default_rng(seed)
    batch = {info.shape[0] for info in inputs if info.shape} - {None}
    feed = {}
    for info in inputs:
        if info.dtype is None:
            raise CalibrationError(
                f"samples: input {info.name!r} must be a tensor that numpy can hold, it isn't"
            )
        shape = tuple(
            size if isinstance(size, int) else 1 if axis == 0 or size in batch else free
            for axis, size in enumerate(info.shape)
        )
        if not 0 <= prod(shape) <= _MOST_MADE_UP:
            raise CalibrationError(
                f"samples: input {info.name!r} must have at most {_MOST_MADE_UP} elements to be "
                f"made up, its shape is {spell(info.shape)}"
            )
        if info.dtype.kind == "f":
            feed[info.name] = np.asarray(rng.standard_normal(shape)).astype(info.dtype)
        elif info.dtype.kind == "O":
            feed[info.name] = np.full(shape, "", dtype=object)
        else:
            ones = any(part in info.name.lower() for part in _ONES)
            feed[info.name] = np.full(shape, int(ones), dtype=info.dtype)
    return feed


def _read(
    path: Path, inputs: Sequence[TensorInfo], images: ImageOptions
) -> tuple[Sequence[Feed], Labels | None]:
    if not path.exists():
        raise CalibrationError(f"samples: no such file or folder: {path}")
    if path.is_file() and path.suffix.lower() == ".npz":
        return read_archive(path, inputs)
    if not path.is_dir():
        raise CalibrationError(f"samples: {_ACCEPTED} is accepted, got {path.name}")
    archives = sorted(p for p in path.iterdir() if p.suffix.lower() == ".npz" and p.is_file())
    pictures, classes = list_images(path)
    if archives and pictures:
        raise CalibrationError(
            f"samples: {path.name} must hold .npz files or images, it holds both"
        )
    if archives:
        return read_archives(archives, inputs)
    if pictures:
        return read_images(pictures, classes, inputs, images)
    raise CalibrationError(f"samples: {_ACCEPTED} is accepted, {path.name} holds neither")
