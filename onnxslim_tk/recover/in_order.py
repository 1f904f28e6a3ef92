"""Layers refitted one after the other, each on what those before it give by now."""

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from onnxslim_tk.graph.edit import values_of
from onnxslim_tk.graph.layers import Layer, layers
from onnxslim_tk.graph.model import Model
from onnxslim_tk.graph.order import ordered
from onnxslim_tk.kernels.held_out import fit_rows
from onnxslim_tk.measure.mixtures import mixtures
from onnxslim_tk.measure.observe import fetch
from onnxslim_tk.measure.probe import Probe
from onnxslim_tk.measure.rows import input_rows
from onnxslim_tk.measure.runtime import Feed

Mask = NDArray[np.bool_]
_CHECKED: Final = 12
# Parts of the samples that are held out in turn where the pull to the old weights is chosen.
_FOLDS: Final = 3
# Mixtures for each sample: with 3, crepe-tiny, given seven notes, came 2 dB nearer on others.
_MIXTURES: Final = 2
_ROWS_PER_COLUMN: Final = 4
_FEWEST_ROWS: Final = 6000
# Time grows with the cube of the rows or the inputs, whichever are fewer.
_WIDE: Final = 2048
_ROWS_OF_WIDE: Final = 2048


def refit_in_order(
    model: Model,
    original: Model,
    reading: frozenset[str],
    rows: Mapping[str, Mask],
    feeds: Sequence[Feed],
    outputs: set[str],
    seed: int,
) -> bool:
    """Refit the layers of a changed model one after the other, on what those before them give.

    The target is what the ``original``'s layer gives. ``reading`` are the ids of layers whose
    inputs changed: from the first of them on all are refitted. ``rows`` tell which outputs of a
    layer stayed, where not all did. False, and nothing done, where that doesn't bring the outputs
    nearer.
    """
    probe = Probe(original, feeds[-_CHECKED:])
    if not probe.measures:
        return False
    twin = model.copy()
    fitted = _with_mixtures(feeds, seed)
    order = [layer.id for layer in _in_order(twin)]
    first = next((k for k, name in enumerate(order) if name in reading), len(order))
    refit_each(twin, original, frozenset(order[first:]), rows, fitted, outputs, seed)
    if not probe.difference(twin) < probe.difference(model):
        return False
    model.become(twin)
    return True


def _with_mixtures(feeds: Sequence[Feed], seed: int) -> list[Feed]:
    """Samples with mixtures of those that are held out together beside them."""
    found: list[Feed] = []
    whole = _folds(len(feeds) * (1 + _MIXTURES))
    for k, (part, room) in enumerate(zip(_folds(len(feeds)), whole, strict=True)):
        own = [feeds[int(place)] for place in part]
        found += [*own, *mixtures(own, len(room) - len(own), seed + k)]
    return found


def _folds(count: int) -> list[NDArray[np.int64]]:
    """Runs of neighbours: they may be of one source, and are held out together."""
    return np.array_split(np.arange(count), _FOLDS)


def comparable(reference: Model | None, model: Model) -> Model:
    """The model whose layers say what those of ``model`` should give.

    That is ``reference``, the model before anything was lost, unless its layers had other outputs
    by then.
    """
    if reference is None:
        return model
    before = {layer.id: layer.channels for layer in layers(reference)}
    same = all(before.get(layer.id, layer.channels) == layer.channels for layer in layers(model))
    return reference if same else model


def refit_each(
    model: Model,
    original: Model,
    wanted: frozenset[str],
    rows: Mapping[str, Mask],
    feeds: Sequence[Feed],
    outputs: set[str],
    seed: int,
) -> None:
    """Refit the layers with the ids ``wanted`` to what they gave in ``original``, in order."""
    sources = {layer.id: layer for layer in layers(original)}
    for layer in _in_order(model):
        source = sources.get(layer.id)
        plain = layer.kind in ("Conv", "Gemm", "MatMul")
        if layer.id in wanted and source is not None and plain and not layer.is_shared:
            stays = rows.get(layer.id, np.ones(source.channels, bool))
            _refit_behind(model, layer, original, source, stays, feeds, outputs, seed)


def _in_order(model: Model) -> list[Layer]:
    """The layers of the outermost graph, in the order of the data."""
    found = {id(layer.node): layer for layer in layers(model) if not layer.path}
    return [found[id(node)] for node in ordered(model.graph) if id(node) in found]


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
    width = source.matrix().shape[2]
    fill = max(_ROWS_PER_COLUMN * width, _FEWEST_ROWS) if width <= _WIDE else _ROWS_OF_WIDE
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
    folds = [fold for fold in _folds(len(given)) if len(fold)]
    # Where inputs hardly vary, the weight that stands there is the better guess.
    parts = y.reshape(len(y), len(current), -1).transpose(1, 0, 2)
    weight = fit_rows(x, parts, current, [np.isin(sample, fold) for fold in folds])
    means = np.einsum("gnd,gd->gn", weight, x.mean(1, dtype=np.float64)).ravel()
    shift = y.mean(0, dtype=np.float64) - means
    old_bias, new_bias = source.bias(outputs), layer.bias(outputs)
    if old_bias is not None:
        shift = shift + np.broadcast_to(values_of(old_bias).reshape(-1), (len(rows),))[rows]
    if new_bias is not None:
        shift = shift - values_of(new_bias).reshape(-1)
    if layer.shift_bias(model, shift, outputs):
        layer.set_dense(model, layer.from_matrix(weight))
