"""A layer's input as the rows that its matrix multiplies."""

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from onnxslim_tk.graph.edit import input_at
from onnxslim_tk.graph.layers import Layer
from onnxslim_tk.graph.model import Tensor

Array = NDArray[Any]
_FIRST_STATE: Final = 5


def row_width(layer: Layer) -> int:
    """Number of inputs in a row of :func:`input_rows`."""
    shape = layer.shape
    if layer.kind == "Conv":
        return prod(shape[1:])
    if layer.kind == "ConvTranspose":
        return shape[0] // layer.groups
    if layer.is_recurrent:
        return shape[2]
    return shape[1] if layer.transposed else shape[0]


def row_sources(layer: Layer) -> list[Tensor]:
    """The tensors that :func:`shown` makes a layer's rows of; none where nothing shows them.

    The recurrent weight of an LSTM, GRU or RNN multiplies the hidden states before each step:
    those that the node gives, and the first one.
    """
    if layer.meets_input:
        return [layer.input]
    states = layer.node.outputs[0]
    if not layer.is_recurrent or not states.name:
        return []
    first = input_at(layer.node, _FIRST_STATE)
    return [states] if first is None else [states, first]


def shown(layer: Layer, sources: Sequence[Array]) -> Array:
    """What :func:`input_rows` takes, from the values of a layer's :func:`row_sources`.

    For the hidden states of recurrent layers that is ``(directions, states, hidden)``. The states
    of a GRU stand for those behind its reset gate too.
    """
    if layer.meets_input:
        return sources[0]
    states = sources[0]
    found = []
    for k in range(states.shape[1]):
        backward = k == 1 or layer.node.attrs.get("direction", "forward") == "reverse"
        before = states[1:, k] if backward else states[:-1, k]
        parts = [before.reshape(-1, states.shape[-1])]
        if len(sources) > 1:
            parts.append(sources[1][k])
        found.append(np.concatenate(parts))
    return np.stack(found)


def input_rows(layer: Layer, values: Array, most: int, rng: np.random.Generator) -> Array:
    """Rows that a layer's matrix meets, ``(groups, rows, inputs)``, float32, of what is shown.

    At most ``most`` rows, drawn without repetition.
    """
    if layer.kind == "Conv":
        return _patches(layer, values, most, rng)
    if layer.kind == "ConvTranspose":
        channels = np.moveaxis(values, 1, -1).reshape(-1, values.shape[1])
        picked = channels[_pick(len(channels), most, rng)]
        split = picked.reshape(len(picked), layer.groups, -1)
        return np.ascontiguousarray(split.transpose(1, 0, 2))
    if not layer.meets_input:
        return np.ascontiguousarray(values[:, _pick(values.shape[1], most, rng)])
    flat = values.reshape(-1, values.shape[-1])
    rows = flat[_pick(len(flat), most, rng)]
    # All directions of a recurrent layer read the same rows.
    return np.broadcast_to(rows, (layer.groups, *rows.shape))


def _pick(count: int, most: int, rng: np.random.Generator) -> NDArray[np.int64]:
    return np.arange(count) if count <= most else np.sort(rng.choice(count, most, replace=False))


def _edges(
    attrs: Mapping[str, Any], sizes: Sequence[int], spans: Sequence[int], strides: Sequence[int]
) -> list[tuple[int, int]]:
    """Padding before and behind each axis, also where the operator finds it by itself."""
    dims = len(sizes)
    auto = attrs.get("auto_pad", "NOTSET")
    if auto.startswith("SAME"):
        # As many places as strides fit in; an odd rest goes behind, or before with SAME_LOWER.
        wanted = [-(-n // step) * step - step for n, step in zip(sizes, strides, strict=True)]
        totals = [max(0, w + span - n) for w, span, n in zip(wanted, spans, sizes, strict=True)]
        halves = [(total // 2, total - total // 2) for total in totals]
        return halves if auto == "SAME_UPPER" else [(b, a) for a, b in halves]
    pads = attrs.get("pads", [0] * 2 * dims)
    return [(pads[i], pads[dims + i]) for i in range(dims)]


def _patches(layer: Layer, values: Array, most: int, rng: np.random.Generator) -> Array:
    kernel = layer.shape[2:]
    dims = len(kernel)
    attrs = layer.node.attrs
    strides = attrs.get("strides", [1] * dims)
    dilations = attrs.get("dilations", [1] * dims)
    spans = [(kernel[i] - 1) * dilations[i] + 1 for i in range(dims)]
    padded = np.pad(values, [(0, 0), (0, 0), *_edges(attrs, values.shape[2:], spans, strides)])
    places = [(padded.shape[2 + i] - spans[i]) // strides[i] + 1 for i in range(dims)]
    batch = len(values)
    picked = _pick(batch * prod(places), most, rng)
    positions = np.unravel_index(picked, (batch, *places))
    offsets = np.meshgrid(
        *(np.arange(kernel[i]) * dilations[i] for i in range(dims)), indexing="ij"
    )
    index = [positions[1 + i][:, None] * strides[i] + offsets[i].ravel()[None] for i in range(dims)]
    # Advanced indices around the channel slice put it last: (rows, kernel, channels).
    taken = padded[(positions[0][:, None], slice(None), *index)]
    rows = taken.transpose(0, 2, 1).reshape(len(picked), layer.groups, -1)
    return np.ascontiguousarray(rows.transpose(1, 0, 2))
