"""How near a result's outputs are to the original's: no labels needed."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from onnxslim_tk.errors import ModelError
from onnxslim_tk.measure.kinds import OutputKind, collapse, guess_kind, squeeze_map
from onnxslim_tk.measure.padding import real_steps
from onnxslim_tk.measure.runtime import Feed
from onnxslim_tk.measure.samples import Samples
from onnxslim_tk.measure.slices import Slices, decibels

Runner = Callable[[Feed], Mapping[str, NDArray[Any]]]
"""Runs a model: ``Session.run`` is one."""

_GUESS_FROM: Final = 8
_TIE: Final = 0.01
"""Share of the range of a row's scores within which two of them say the same."""


@dataclass(frozen=True, slots=True)
class OutputFidelity:
    """How near one output of the result is to the original's, over all samples.

    ``sqnr_db`` is the ratio of signal to noise: 200 for identical outputs, minus infinity when
    the result holds what isn't finite where the original is (``non_finite``). ``cosine`` is the
    mean over samples. ``top1_agreement`` is the share of rows, or of a sequence's steps, with
    the same best class (of rows, also with one that the original holds for as good, within a
    hundredth of its scores' range), ``sequence_agreement`` that of sequences that read the same.
    ``worst_slice`` is the class or channel with the lowest ratio, and ``collapsed_slices`` have
    gone constant. A sample whose result has another shape counts as zeros, and is counted.
    """

    name: str
    kind: OutputKind
    sqnr_db: float
    cosine: float
    top1_agreement: float | None
    sequence_agreement: float | None
    worst_slice: tuple[int, float] | None
    collapsed_slices: tuple[int, ...]
    non_finite: bool
    max_abs_error: float
    shape_mismatches: int


@dataclass(frozen=True, slots=True)
class Comparison:
    """The fidelity of every output, and the primary outputs that a metric scores.

    The primary output is the first of floats, or else the first; the two lists are empty unless
    they were asked for, since they grow with the samples.
    """

    outputs: tuple[OutputFidelity, ...]
    primary: str
    original_primary: list[NDArray[Any]]
    result_primary: list[NDArray[Any]]


class Fidelity:
    """Compares outputs sample by sample in constant memory.

    ``kinds`` settles the kind of outputs by name; the others' is guessed from the first
    samples.
    """

    def __init__(self, kinds: Mapping[str, OutputKind] | None = None) -> None:
        self._kinds = dict(kinds or {})
        self._figures: dict[str, _Figures] = {}

    def update(
        self,
        name: str,
        reference: NDArray[Any],
        value: NDArray[Any],
        real: NDArray[np.bool_] | None = None,
    ) -> None:
        """Take in one sample of the output ``name``: the original's array and the result's.

        ``real``, ``(n, t)``, says which steps of a sequence ``(n, t, c)`` are no padding; the
        others don't count where steps or sequences agree.
        """
        self._figures.setdefault(name, _Figures()).update(
            squeeze_map(np.asarray(reference)), squeeze_map(np.asarray(value)), real
        )

    def result(self) -> tuple[OutputFidelity, ...]:
        """The figures of each output so far, in the order of first appearance."""
        return tuple(
            figures.report(name, self._kinds.get(name) or guess_kind(name, figures.first))
            for name, figures in self._figures.items()
        )


class _Figures:
    """The sums behind one output's figures."""

    def __init__(self) -> None:
        self.first: list[NDArray[Any]] = []
        self._energy = 0.0
        self._error = 0.0
        self._largest = 0.0
        self._cosines = 0.0
        self._rows = 0
        self._slices = Slices()
        self._equal_steps = 0
        self._steps = 0
        self._equal_sequences = 0
        self._sequences = 0
        self._non_finite = False
        self._mismatches = 0

    def update(
        self, reference: NDArray[Any], value: NDArray[Any], real: NDArray[np.bool_] | None
    ) -> None:
        if len(self.first) < _GUESS_FROM:
            self.first.append(reference)
        same_shape = reference.shape == value.shape
        self._mismatches += not same_shape
        if not same_shape:
            value = np.zeros_like(reference)
        self._agree(reference, value, same_shape, real)
        self._measure(*_as_numbers(reference, value))

    def _measure(self, reference: NDArray[np.float64], value: NDArray[np.float64]) -> None:
        # Minus infinity in a mask is a value like others as long as both have it there.
        usable = np.isfinite(reference)
        broken = usable & ~np.isfinite(value)
        self._non_finite |= bool(broken.any())
        reference = np.where(usable, reference, 0.0)
        value = np.where(usable & ~broken, value, 0.0)
        error = np.abs(reference - value)
        self._energy += float(np.square(reference).sum())
        self._error += float(np.square(error).sum())
        self._largest = max(self._largest, float(error.max(initial=0.0)))
        cosines = _cosines(reference, value)
        self._cosines += float(cosines.sum())
        self._rows += len(cosines)
        self._slices.update(reference, value)

    def _agree(
        self,
        reference: NDArray[Any],
        value: NDArray[Any],
        same_shape: bool,
        real: NDArray[np.bool_] | None,
    ) -> None:
        if reference.size == 0:
            return
        if reference.dtype.kind == "f" and reference.ndim > 0:
            broken = (np.isfinite(reference) & ~np.isfinite(value)).any(axis=-1)
            best, other = reference.argmax(axis=-1), np.where(broken, -1, value.argmax(axis=-1))
        else:
            best, other = reference, value
        equal = np.asarray((best == other) & same_shape)
        steps = reference.ndim == 3 and reference.dtype.kind == "f"
        if reference.dtype.kind == "f" and same_shape and reference.ndim > 0 and not steps:
            apart = ~equal
            equal[apart] = _as_good(reference[apart], other[apart])
        counted = np.ones(equal.shape, bool)
        if steps and real is not None and real.shape == equal.shape:
            counted = real
        self._equal_steps += int(np.count_nonzero(equal & counted))
        self._steps += int(np.count_nonzero(counted))
        if steps:
            for row, other_row, same, kept in zip(best, other, equal, counted, strict=True):
                read = [collapse(path[kept]) for path in (row, other_row)]
                self._sequences += 1
                reads_same = same[kept].all() or (same_shape and read[0] == read[1])
                self._equal_sequences += bool(reads_same)

    def report(self, name: str, kind: OutputKind) -> OutputFidelity:
        ranked = kind in ("classes", "sequence") and self._steps > 0
        sequence = kind == "sequence" and self._sequences > 0
        return OutputFidelity(
            name=name,
            kind=kind,
            sqnr_db=-math.inf if self._non_finite else decibels(self._energy, self._error),
            cosine=self._cosines / self._rows if self._rows else 1.0,
            top1_agreement=self._equal_steps / self._steps if ranked else None,
            sequence_agreement=self._equal_sequences / self._sequences if sequence else None,
            worst_slice=self._slices.worst(),
            collapsed_slices=self._slices.collapsed(),
            non_finite=self._non_finite,
            max_abs_error=math.inf if self._non_finite else self._largest,
            shape_mismatches=self._mismatches,
        )


def _as_good(scores: NDArray[Any], chosen: NDArray[Any]) -> NDArray[np.bool_]:
    """Whether ``scores`` hold the chosen class (-1: none) of each row for as good as their best."""
    wide = scores.astype(np.float64)
    best = wide.max(axis=-1)
    taken = np.take_along_axis(wide, np.maximum(chosen, 0)[..., None], axis=-1)[..., 0]
    with np.errstate(invalid="ignore"):
        near = best - taken <= _TIE * (best - wide.min(axis=-1))
    return np.asarray(near & (chosen >= 0))


def compare(
    original: Runner,
    result: Runner,
    samples: Samples,
    kinds: Mapping[str, OutputKind] | None = None,
    progress: Callable[[int, int], None] | None = None,
    keep_primary: bool | None = None,
) -> Comparison:
    """Run both models on every sample and compare their outputs.

    ``progress(done, total)`` is called after each sample. Primary outputs are kept when
    ``keep_primary``, by default when the samples have labels. Raises ModelError when the result
    lacks an output, SessionError when a run fails.
    """
    fidelity = Fidelity(kinds)
    keep = samples.labels is not None if keep_primary is None else keep_primary
    primary = ""
    originals: list[NDArray[Any]] = []
    results: list[NDArray[Any]] = []
    for index, feed in enumerate(samples.feeds):
        references, values = original(feed), result(feed)
        primary = primary or primary_output(references)
        real = real_steps(feed)
        for name, reference in references.items():
            if name not in values:
                raise ModelError(f"compare: the result must have the output {name!r}, it hasn't")
            fidelity.update(name, reference, values[name], real)
        if keep and primary:
            originals.append(references[primary])
            results.append(values[primary])
        if progress is not None:
            progress(index + 1, len(samples))
    return Comparison(fidelity.result(), primary, originals, results)


def primary_output(outputs: Mapping[str, NDArray[Any]]) -> str:
    """The name of the output that stands for a model: the first of floats, or else the first."""
    floats = (name for name, value in outputs.items() if value.dtype.kind == "f")
    return next(floats, next(iter(outputs), ""))


def _as_numbers(
    reference: NDArray[Any], value: NDArray[Any]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    if reference.dtype.kind in "fiub" and value.dtype.kind in "fiub":
        return reference.astype(np.float64), value.astype(np.float64)
    # Text is equal or it isn't.
    return np.ones(reference.shape), np.asarray(reference == value, np.float64)


def _cosines(reference: NDArray[np.float64], value: NDArray[np.float64]) -> NDArray[np.float64]:
    """The cosine of each row of the first axis, 1 for two rows of zeros."""
    rows = len(reference) if reference.ndim > 1 else 1
    if reference.size == 0:
        return np.ones(rows)
    left, right = reference.reshape(rows, -1), value.reshape(rows, -1)
    norms = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    dots = np.einsum("ij,ij->i", left, right)
    blank = ~left.any(axis=1) & ~right.any(axis=1)
    cosines = np.divide(dots, norms, out=np.zeros(rows), where=norms > 0)
    return np.where(blank, 1.0, np.clip(cosines, -1.0, 1.0))
