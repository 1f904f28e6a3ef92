"""Layers that lose inputs: what reads their channels, and refits for what is left."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from onnxslim_tk.graph.edit import set_input
from onnxslim_tk.graph.groups import Group
from onnxslim_tk.graph.layers import Layer
from onnxslim_tk.graph.model import Model
from onnxslim_tk.graph.sharing import others_read
from onnxslim_tk.kernels.elimination import Reader
from onnxslim_tk.kernels.least_squares import mean_shift, refit_columns, shrinkage
from onnxslim_tk.measure.moments import Moments
from onnxslim_tk.measure.observe import Statistics
from onnxslim_tk.recover.bias import moments_of
from onnxslim_tk.recover.damping import ALIKE_IN_REFITS

Array = NDArray[Any]
Indices = NDArray[np.int64]
Mask = NDArray[np.bool_]
# Below this share of all energy a direction is rounding noise of sums in float32.
_ROUNDING: Final = 1e-6
_SILENT: Final = 1e-30
_WITH_INTERCEPT: Final = ("Conv", "Gemm", "MatMul")
# Wider inputs are told apart by their variances alone.
_WIDEST: Final = 6000


def columns_on(layer: Layer, entries: Array) -> Array:
    """What belongs to each column of a layer's matrix, given for the weight's input axis."""
    if layer.kind == "Conv":
        return np.repeat(entries, int(np.prod(layer.shape[2:])))
    return entries[: len(entries) // layer.groups] if layer.kind == "ConvTranspose" else entries


def readers_of(group: Group, statistics: Statistics | None) -> list[Reader]:
    """The weights that read a group's channels, each with what samples show of its inputs."""
    found = []
    for part in group.touched:
        if part.role != "consumes":
            continue
        on = columns_on(part.layer, group.channels_on(part.labels))
        members = [np.flatnonzero(on == k) for k in range(group.count)]
        blocks = np.full((group.count, max(map(len, members))), -1, np.int64)
        for row, columns in zip(blocks, members, strict=True):
            row[: len(columns)] = columns
        moments = moments_of(part.layer, statistics)
        for k, matrix in enumerate(part.layer.matrix()):
            found.append(_reader(matrix, blocks, moments, k))
    return found


def _reader(matrix: Array, blocks: Indices, moments: Moments | None, group: int) -> Reader:
    if moments is None or moments.second is None:
        return Reader(matrix, None, blocks, float(np.square(matrix).sum()))
    second = moments.second[group]
    power = float(np.vdot(matrix @ second, matrix))
    spread = _spread(moments, group)
    if len(spread) > _WIDEST:
        return Reader(matrix * np.sqrt(np.maximum(np.diag(spread), 0)), None, blocks, power)
    return Reader(matrix, spread, blocks, power)


def _spread(moments: Moments, group: int) -> Array:
    """The covariance about the mean, with a floor that rounding can't reach."""
    assert moments.second is not None
    second, mean = moments.second[group], moments.mean[group]
    spread = np.asarray(second - np.outer(mean, mean), np.float64)
    # Few rows show inputs that make up for each other by chance.
    share = ALIKE_IN_REFITS * shrinkage(spread, moments.count)
    floor = share * max(np.trace(spread), 0.0) / len(mean)
    spread[np.diag_indices_from(spread)] += floor + _ROUNDING * np.trace(second)
    return spread


def missed(group: Group, kept: Indices, seen: Statistics | None, shown: Statistics) -> float | None:
    """What a group's readers miss on samples that they weren't refitted to.

    The squared change of their outputs over their power, the mean over readers, where the channels
    ``kept`` ``(k,)`` stay and readers are refitted to what was ``seen``, on what was ``shown``.
    None where a reader's covariances are unknown. Raises numpy.linalg.LinAlgError where what stays
    isn't positive definite.
    """
    errors = []
    for part in group.touched:
        if part.role != "consumes":
            continue
        on = columns_on(part.layer, group.channels_on(part.labels))
        known, others = (moments_of(part.layer, found) for found in (seen, shown))
        if known is None or others is None or known.second is None or others.second is None:
            return None
        replaced = _refitted(part.layer, (on < 0) | np.isin(on, kept), [known])
        for k, (matrix, after) in enumerate(zip(part.layer.matrix(), replaced, strict=True)):
            lost, old, new = matrix - after, known.mean[k], others.mean[k]
            # About the old mean, which the intercept was set for.
            away = np.outer(new, old)
            about = others.second[k] - away - away.T + np.outer(old, old)
            power = float(np.vdot(matrix @ others.second[k], matrix))
            errors.append(float(np.vdot(lost @ about, lost)) / max(power, _SILENT))
    return float(np.mean(errors)) if errors else None


@dataclass(frozen=True, slots=True, eq=False)
class Loss:
    """A layer that loses inputs, and which columns of its matrix stay."""

    layer: Layer
    stays: Mask


def refit(
    model: Model, losses: Sequence[Loss], statistics: Statistics | None, outputs: set[str]
) -> None:
    """Refit layers at their full size, with zeros for the inputs that go.

    Least squares against the layers' own outputs (He et al., 2017); the intercept lets the mean
    stay without spending weights on it. Layers that share a weight go on sharing it; one that
    something else reads too, such as an embedding, stays as it is.
    """
    sharers: dict[int, list[Loss]] = {}
    for loss in losses:
        sharers.setdefault(id(loss.layer.stored), []).append(loss)
    for group in sharers.values():
        seen = [moments_of(loss.layer, statistics) for loss in group]
        known = [m for m in seen if m is not None and m.second is not None]
        if len(known) == len(group) and not others_read([loss.layer for loss in group]):
            _refit(model, group, known, outputs)


def _refit(
    model: Model, sharers: Sequence[Loss], moments: Sequence[Moments], outputs: set[str]
) -> None:
    layer = sharers[0].layer
    matrix, replaced = layer.matrix(), _refitted(layer, sharers[0].stays, moments)
    before = layer.node.inputs[layer.slot]
    for loss, seen in zip(sharers, moments, strict=True):
        shift = np.stack(
            [mean_shift(a, b, m) for a, b, m in zip(matrix, replaced, seen.mean, strict=True)]
        )
        if layer.kind in _WITH_INTERCEPT:
            loss.layer.shift_bias(model, loss.layer.per_channel(shift), outputs)
    layer.set_dense(model, layer.from_matrix(replaced))
    for loss in sharers[1:]:
        if loss.layer.node.inputs[loss.layer.slot] is before:
            set_input(loss.layer.node, loss.layer.slot, layer.node.inputs[layer.slot])


def _refitted(layer: Layer, stays: Mask, moments: Sequence[Moments]) -> Array:
    """A layer's matrix at its full size, refitted with zeros for the columns that go."""
    matrix, columns = layer.matrix(), np.flatnonzero(stays)
    about = _spread if layer.kind in _WITH_INTERCEPT else _second
    replaced = np.zeros_like(matrix)
    for k in range(len(matrix)):
        normal = np.mean([about(m, k) for m in moments], axis=0)
        replaced[k][:, columns] = refit_columns(matrix[k], columns, normal)
    return replaced


def _second(moments: Moments, group: int) -> Array:
    assert moments.second is not None
    second = moments.second[group]
    return np.asarray(second + _ROUNDING * np.trace(second) * np.eye(len(second)), np.float64)
