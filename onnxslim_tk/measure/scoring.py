"""The arithmetic of the metrics: one row a sample, and the figure of a set of rows."""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from onnxslim_tk.errors import CalibrationError
from onnxslim_tk.measure.kinds import collapse, squeeze_map

Outputs = Sequence[NDArray[Any]]
Labels = NDArray[Any]

PADDING: Final = -1
"""Fills rows of labels that are shorter than others; never counted."""
_LOST: Final = -2
"""The class predicted by scores that aren't numbers: never right."""


def pairs(outputs: Outputs, labels: Labels) -> NDArray[np.object_]:
    """Each sample's output and label, ``(n, 2)``, as they are."""
    if len(outputs) != len(labels):
        raise CalibrationError(
            f"metric: {len(outputs)} outputs need as many labels, got {len(labels)}"
        )
    rows = np.empty((len(outputs), 2), dtype=object)
    for place, (output, label) in enumerate(zip(outputs, labels, strict=True)):
        rows[place, 0], rows[place, 1] = output, label
    return rows


def predictions(outputs: Outputs, labels: Labels) -> NDArray[np.int64]:
    """Predicted and true class, ``(n, steps, 2)``: the best along the last axis.

    Whole numbers are classes themselves; of a single score, above a half (of scores outside
    [0, 1]: above 0) is class 1. Labels may be one-hot.
    """
    rows, truth = _aligned(outputs, labels)
    threshold = 0.5 if all(_within_one(row) for row in rows) else 0.0
    return _steps([_best(row, threshold) for row in rows], rows, truth)


def top5_hits(outputs: Outputs, labels: Labels) -> NDArray[np.int64]:
    """Best of the true class and the first five's, as rows that ``accuracy`` reduces.

    A tie goes to the lower class, as it does in an argmax.
    """
    rows, truth = _aligned(outputs, labels)
    if any(row.ndim == 0 or row.shape[-1] < 2 or row.dtype.kind != "f" for row in rows):
        raise CalibrationError("metric: top5 needs scores of classes along the last axis")
    found = _steps([_best(row, 0.0) for row in rows], rows, truth)
    for place, row in enumerate(rows):
        scores = row.reshape(-1, row.shape[-1])
        labels_of_row = found[place, : len(scores), 1]
        wanted = np.clip(labels_of_row, 0, row.shape[-1] - 1)
        own = np.take_along_axis(scores, wanted[:, None], axis=-1)
        before = (scores == own) & (np.arange(row.shape[-1]) < wanted[:, None])
        rank = np.count_nonzero((scores > own) | before, axis=-1)
        valid = (wanted == labels_of_row) & np.isfinite(scores).all(axis=-1)
        found[place, : len(scores), 0] = np.where(valid & (rank < 5), labels_of_row, _LOST)
    return found


def ranks(outputs: Outputs, labels: Labels) -> NDArray[np.int64]:
    """The rank of each class's score among all samples, then the true class, ``(n, c + 1)``.

    A curve's area depends on order alone. Rows of a single score have two classes; -1 stands
    for a score that isn't a number.
    """
    rows, truth = _aligned(outputs, labels)
    widths = {row.size for row in rows}
    if len(widths) > 1:
        raise CalibrationError(f"metric: auc needs as many scores in all samples, got {widths}")
    scores = np.array([row.reshape(-1) for row in rows], np.float64).reshape(len(rows), -1)
    if scores.shape[1] == 2:
        # Of two probabilities either tells all, of two logits only the difference does.
        sums = scores.sum(axis=1, keepdims=True)
        scores = scores[:, 1:] - (0 if np.allclose(sums, 1, atol=1e-3) else scores[:, :1])
    found = np.empty((len(rows), scores.shape[1] + 1), np.int64)
    for column, values in enumerate(scores.T):
        _, found[:, column] = np.unique(values, return_inverse=True)
    found[:, :-1][np.isnan(scores)] = -1
    found[:, -1] = _single(truth, "auc")
    return found


def last_values(outputs: Outputs, labels: Labels) -> NDArray[np.float64]:
    """The last value of each output and the label, ``(n, 2)``."""
    rows, truth = _aligned(outputs, labels)
    values = [float(row.reshape(-1)[-1]) if row.size else np.nan for row in rows]
    return np.column_stack([values, np.asarray(_single(truth, "pearson"), np.float64)])


def edits(outputs: Outputs, labels: Labels) -> NDArray[np.int64]:
    """Edit distance of the text read off a CTC output and length of the label, ``(n, 2)``."""
    rows, truth = _aligned(outputs, labels)
    found = np.empty((len(rows), 2), np.int64)
    for place, (row, label) in enumerate(zip(rows, truth, strict=True)):
        wanted = [int(symbol) for symbol in np.atleast_1d(label) if symbol != PADDING]
        steps = _best(row, 0.0)
        text = collapse(steps.reshape(-1)) if _LOST not in steps else []
        found[place] = edit_distance(text, wanted), len(wanted)
    return found


def accuracy(rows: NDArray[np.int64]) -> float:
    """Share of predictions that are true."""
    counted = rows[..., 1] != PADDING
    total = np.count_nonzero(counted)
    right = np.count_nonzero(counted & (rows[..., 0] == rows[..., 1]))
    return right / total if total else np.nan


def macro_f1(rows: NDArray[np.int64]) -> float:
    """F1 averaged over the classes that occur, predicted or true."""
    counted = rows[rows[..., 1] != PADDING]
    if len(counted) == 0:
        return np.nan
    predicted, true = (counted - min(0, int(counted.min()))).T
    size = int(max(predicted.max(), true.max())) + 1
    right = np.bincount(true[predicted == true], minlength=size)
    both = np.bincount(predicted, minlength=size) + np.bincount(true, minlength=size)
    return float(np.mean(2 * right[both > 0] / both[both > 0]))


def area_under_curve(rows: NDArray[np.int64]) -> float:
    """Area under the ROC curve; of more than two classes, the mean of each against the rest."""
    scores, true = rows[:, :-1], rows[:, -1]
    if np.any(scores < 0):
        return np.nan
    classes = [1] if scores.shape[1] == 1 else range(scores.shape[1])
    areas = [_area(scores[:, i], true == k) for i, k in enumerate(classes)]
    return float(np.mean([area for area in areas if area is not None] or [np.nan]))


def pearson(rows: NDArray[np.float64]) -> float:
    """Pearson's correlation; 0 when the outputs are all the same."""
    values, labels = (rows - rows.mean(axis=0)).T
    # Rounding may leave the mean of equal values a little off them.
    if np.ptp(rows[:, 1]) == 0 or not np.isfinite(rows).all():
        return np.nan
    if np.ptp(rows[:, 0]) == 0:
        return 0.0
    return float(values @ labels / np.sqrt((values @ values) * (labels @ labels)))


def error_rate(rows: NDArray[np.int64]) -> float:
    """Edits a symbol of the labels."""
    distance, length = rows.sum(axis=0)
    return float(distance / length) if length else np.nan


def edit_distance(left: Sequence[int], right: Sequence[int]) -> int:
    """The fewest insertions, deletions and substitutions from ``left`` to ``right``.

    Source: Wagner and Fischer, 1974.
    """
    if left == right:
        return 0
    above = list(range(len(right) + 1))
    for row, symbol in enumerate(left, start=1):
        current = [row]
        for column, other in enumerate(right, start=1):
            change = above[column - 1] + (symbol != other)
            current.append(min(change, above[column] + 1, current[-1] + 1))
        above = current
    return above[-1]


def _aligned(outputs: Outputs, labels: Labels) -> tuple[list[NDArray[Any]], Labels]:
    """Outputs cut into rows without their first axis, and one label a row."""
    for kind, array in (*(("outputs", output) for output in outputs), ("labels", labels)):
        if array.dtype.kind not in "fiub":
            raise CalibrationError(f"metric: {kind} must be numbers, got {array.dtype}")
    outputs = [squeeze_map(output) for output in outputs]
    rows = [row for output in outputs for row in (output if output.ndim else output[None])]
    if len(rows) != len(labels) and len(outputs) == len(labels) and labels.ndim > 1:
        labels = labels.reshape(-1, *labels.shape[2:])
    if len(rows) != len(labels) and len(outputs) == len(labels):
        # The model has no axis of samples.
        rows = list(outputs)
    if len(rows) != len(labels):
        raise CalibrationError(
            f"metric: {len(rows)} rows of outputs need as many labels, got {len(labels)}"
        )
    return rows, labels


def _within_one(row: NDArray[Any]) -> bool:
    # Rounding to 8 bits may carry a probability a little past its ends.
    return bool(np.all(np.isnan(row) | ((row > -0.05) & (row < 1.05))))


def _best(row: NDArray[Any], threshold: float) -> NDArray[np.int64]:
    if row.dtype.kind != "f":
        return np.asarray(row, np.int64)
    if row.ndim == 0 or row.shape[-1] == 1:
        return np.where(np.isnan(row), _LOST, row > threshold).astype(np.int64).reshape(-1)
    return np.where(np.isfinite(row).all(axis=-1), row.argmax(axis=-1), _LOST).astype(np.int64)


def _steps(
    found: Sequence[NDArray[np.int64]], rows: Sequence[NDArray[Any]], labels: Labels
) -> NDArray[np.int64]:
    """Predictions beside labels, ``(n, steps, 2)``, padded to the longest."""
    steps = max((best.size for best in found), default=0)
    joined = np.full((len(found), steps, 2), PADDING, np.int64)
    for place, (best, row, label) in enumerate(zip(found, rows, labels, strict=True)):
        truth = np.asarray(label)
        if truth.ndim and truth.shape == row.shape and truth.shape[-1] > 1 and best.ndim < row.ndim:
            truth = truth.argmax(axis=-1)
        truth = truth.reshape(-1)
        # Padding may run past a sample's own steps.
        if truth.size < best.size or np.any(truth[best.size :] != PADDING):
            raise CalibrationError(
                f"metric: {best.size} predictions a sample need as many labels, got {truth.size}"
            )
        joined[place, : best.size, 0] = best.reshape(-1)
        joined[place, : best.size, 1] = truth[: best.size]
    return joined


def _single(labels: Labels, name: str) -> Labels:
    if labels.size != len(labels):
        raise CalibrationError(f"metric: {name} needs one label a sample, got {labels.shape}")
    return labels.reshape(-1)


def _area(ranked: NDArray[np.int64], positive: NDArray[np.bool_]) -> float | None:
    hits = np.bincount(ranked[positive], minlength=int(ranked.max()) + 1)
    others = np.bincount(ranked[~positive], minlength=len(hits))
    if not hits.any() or not others.any():
        return None
    # Ties count half.
    below = np.cumsum(others) - others / 2
    return float(hits @ below / (hits.sum() * others.sum()))
