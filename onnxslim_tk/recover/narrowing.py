"""Layers that lose inputs: what reads their channels, refits, and refits in the cut model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from onnxslim_tk.graph.edit import set_input, values_of
from onnxslim_tk.graph.groups import Group
from onnxslim_tk.graph.layers import Layer, layers
from onnxslim_tk.graph.model import Model
from onnxslim_tk.graph.order import ordered
from onnxslim_tk.kernels.elimination import Reader
from onnxslim_tk.kernels.held_out import fit_rows
from onnxslim_tk.kernels.least_squares import mean_shift, refit_columns, shrinkage
from onnxslim_tk.measure.moments import Moments
from onnxslim_tk.measure.observe import Statistics, fetch
from onnxslim_tk.measure.probe import Probe
from onnxslim_tk.measure.rows import input_rows
from onnxslim_tk.measure.runtime import Feed
from onnxslim_tk.recover.bias import moments_of

Array = NDArray[Any]
Indices = NDArray[np.int64]
Mask = NDArray[np.bool_]
# Below this share of all energy a direction is rounding noise of sums in float32.
_ROUNDING: Final = 1e-6
# Wider inputs are told apart by their variances alone.
_WIDEST: Final = 6000
_CHECKED: Final = 12
# Every fourth sample is held out where the pull to the old weights is chosen.
_HELD: Final = 4
_ROWS_PER_COLUMN: Final = 4
_FEWEST_ROWS: Final = 6000
_MOST_VALUES: Final = 1 << 25


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
    floor = shrinkage(spread, moments.count) * max(np.trace(spread), 0.0) / len(mean)
    spread[np.diag_indices_from(spread)] += floor + _ROUNDING * np.trace(second)
    return spread


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
    stay without spending weights on it. Layers that share a weight go on sharing it.
    """
    sharers: dict[int, list[Loss]] = {}
    for loss in losses:
        sharers.setdefault(id(loss.layer.stored), []).append(loss)
    for group in sharers.values():
        seen = [moments_of(loss.layer, statistics) for loss in group]
        known = [m for m in seen if m is not None and m.second is not None]
        if len(known) == len(group):
            _refit(model, group, known, outputs)


def _refit(
    model: Model, sharers: Sequence[Loss], moments: Sequence[Moments], outputs: set[str]
) -> None:
    layer, stays = sharers[0].layer, sharers[0].stays
    matrix, columns = layer.matrix(), np.flatnonzero(stays)
    replaced = np.zeros_like(matrix)
    for k in range(len(matrix)):
        movable = layer.kind in ("Conv", "Gemm", "MatMul")
        normal = np.mean([_spread(m, k) if movable else _second(m, k) for m in moments], axis=0)
        replaced[k][:, columns] = refit_columns(matrix[k], columns, normal)
    before = layer.node.inputs[layer.slot]
    for loss, seen in zip(sharers, moments, strict=True):
        shift = np.stack(
            [mean_shift(a, b, m) for a, b, m in zip(matrix, replaced, seen.mean, strict=True)]
        )
        if layer.kind in ("Conv", "Gemm", "MatMul"):
            loss.layer.shift_bias(model, loss.layer.per_channel(shift), outputs)
    layer.set_dense(model, layer.from_matrix(replaced))
    for loss in sharers[1:]:
        if loss.layer.node.inputs[loss.layer.slot] is before:
            set_input(loss.layer.node, loss.layer.slot, layer.node.inputs[layer.slot])


def _second(moments: Moments, group: int) -> Array:
    assert moments.second is not None
    second = moments.second[group]
    return np.asarray(second + _ROUNDING * np.trace(second) * np.eye(len(second)), np.float64)


def refit_in_order(
    model: Model,
    original: Model,
    reading: frozenset[str],
    rows: Mapping[str, Mask],
    feeds: Sequence[Feed],
    outputs: set[str],
    seed: int,
) -> None:
    """Refit the layers of a cut model one after the other, on what those before them give.

    The target is what the ``original``'s layer gives. ``reading`` are the ids of layers that lost
    inputs: from the first of them on all are refitted. ``rows`` tell which outputs of a layer
    stayed, where not all did. Taken back where that doesn't bring the outputs nearer.
    """
    probe = Probe(original, feeds[-_CHECKED:])
    if not probe.measures:
        return
    twin = model.copy()
    sources = {layer.id: layer for layer in layers(original)}
    found = {id(layer.node): layer for layer in layers(twin) if not layer.path}
    begun = False
    for layer in [found[id(node)] for node in ordered(twin.graph) if id(node) in found]:
        begun = begun or layer.id in reading
        source = sources.get(layer.id)
        plain = layer.kind in ("Conv", "Gemm", "MatMul")
        if begun and source is not None and plain and not layer.is_shared:
            stays = rows.get(layer.id, np.ones(source.channels, bool))
            _refit_behind(twin, layer, original, source, stays, feeds, outputs, seed)
    if probe.difference(twin) < probe.difference(model):
        for name in ("graph", "notes", "origins", "taken", "counter"):
            setattr(model, name, getattr(twin, name))


def _refit_behind(
    model: Model,
    layer: Layer,
    original: Model,
    source: Layer,
    rows: Mask,
    feeds: Sequence[Feed],
    outputs: set[str],
    seed: int,
) -> None:
    groups, _, width = source.matrix().shape
    fill = min(max(_ROWS_PER_COLUMN * width, _FEWEST_ROWS), _MOST_VALUES // (groups * width))
    most = max(4, -(-fill // len(feeds)))
    wanted, given = [], []
    pairs = zip(
        fetch(original, [source.input.name], feeds),
        fetch(model, [layer.input.name], feeds),
        strict=True,
    )
    for k, (before, after) in enumerate(pairs):
        # The same seed picks the same places of both.
        picks = (np.random.default_rng([seed, k]) for _ in range(2))
        old = input_rows(source, before[source.input.name], most, next(picks))
        given.append(input_rows(layer, after[layer.input.name], most, next(picks)))
        made = old @ source.matrix().transpose(0, 2, 1).astype(np.float32)
        wanted.append(made.transpose(1, 0, 2).reshape(old.shape[1], -1)[:, rows])
    x, y, current = np.concatenate(given, 1), np.concatenate(wanted), layer.matrix()
    if x.shape[1] != len(y) or not (np.isfinite(x).all() and np.isfinite(y).all()):
        return
    sample = np.repeat(np.arange(len(given)), [part.shape[1] for part in given])
    every = min(_HELD, len(given))
    # Where inputs hardly vary, the weight that stands there is the better guess.
    parts = y.reshape(len(y), len(current), -1).transpose(1, 0, 2)
    weight = fit_rows(x, parts, current, sample % every == every - 1)
    means = np.einsum("gnd,gd->gn", weight, x.mean(1, dtype=np.float64)).ravel()
    shift = y.mean(0, dtype=np.float64) - means
    old_bias, new_bias = source.bias(outputs), layer.bias(outputs)
    if old_bias is not None:
        shift = shift + np.broadcast_to(values_of(old_bias).reshape(-1), (len(rows),))[rows]
    if new_bias is not None:
        shift = shift - values_of(new_bias).reshape(-1)
    if layer.shift_bias(model, shift, outputs):
        layer.set_dense(model, layer.from_matrix(weight))
