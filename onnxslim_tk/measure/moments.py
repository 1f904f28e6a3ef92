"""Moments of the rows that layers multiply, accumulated feed after feed."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from onnxslim_tk.graph.edit import is_constant, values_of
from onnxslim_tk.graph.layers import Layer
from onnxslim_tk.measure.branches import Inner
from onnxslim_tk.measure.padding import Steps, real_rows
from onnxslim_tk.measure.rows import input_rows, row_sources, row_width, shown

Array = NDArray[Any]
Floats = NDArray[np.float64]

_FEWEST_ROWS: Final = 8000
_MOST_ROWS: Final = 12000
_ROWS_PER_COLUMN: Final = 4
_FLUSH_VALUES: Final = 1 << 23
# Time grows with the cube of the inputs, memory with their square.
_WIDEST_COVARIANCE: Final = 8192
_COVARIANCE_BYTES: Final = 1 << 32


@dataclass(slots=True)
class Moments:
    """First and second moments of the rows that a layer's weight multiplies.

    ``mean`` is ``(groups, inputs)`` over ``count`` rows, ``second`` the uncentred covariance
    ``(groups, inputs, inputs)``, or None where only the mean was asked for.
    """

    count: int
    mean: Floats
    second: Floats | None


def related(seen: Sequence[Layer]) -> set[str]:
    """Layers whose covariances are kept, those of few inputs first.

    What is quantized already is rounded no more, so that nothing asks for its covariance.
    """
    found, taken = set(), 0
    for layer in sorted((layer for layer in seen if layer.is_dense), key=row_width):
        width = row_width(layer)
        taken += layer.groups * width * width * np.dtype(np.float64).itemsize
        if width > _WIDEST_COVARIANCE or taken > _COVARIANCE_BYTES:
            break
        found.add(layer.id)
    return found


def row_limit(layer: Layer, feeds: int) -> int:
    """How many rows of a layer's input each of so many feeds should bring."""
    cap = min(max(_ROWS_PER_COLUMN * row_width(layer), _FEWEST_ROWS), _MOST_ROWS)
    return max(4, -(-cap // feeds))


class Rows:
    """Accumulates the moments of one layer's input rows.

    They are made of the values of ``names``, those of them that lie in a branch ``inside`` it.
    """

    def __init__(self, layer: Layer, covariance: bool, feeds: int, seed: int) -> None:
        self.layer = layer
        self.sources = row_sources(layer)
        moved = [tensor for tensor in self.sources if not is_constant(tensor)]
        self.inside = [Inner(layer.path, tensor.name) for tensor in moved if layer.path]
        self.names = tuple(i.key for i in self.inside) or tuple(tensor.name for tensor in moved)
        self.covariance = covariance
        self.width = row_width(layer)
        self.cap = row_limit(layer, feeds)
        self.rng = np.random.default_rng(seed)
        self.count = 0
        self.total: Floats = np.zeros((layer.groups, self.width))
        self.shift: NDArray[np.float32] | None = None
        self.second: Floats | None = None
        self.waiting: list[Array] = []

    def add(self, found: Mapping[str, Array], real: Steps | None) -> None:
        """Count the rows of one feed, from its values of :attr:`names`."""
        names = iter(self.names)
        sources = [values_of(t) if is_constant(t) else found[next(names)] for t in self.sources]
        # What lies in a branch that was not taken is empty.
        if not all(values.size for values in sources):
            return
        values = real_rows(self.layer, shown(self.layer, sources), real)
        if values.dtype != np.float32 or not values.size or not np.isfinite(values).all():
            return
        rows = input_rows(self.layer, values, self.cap, self.rng)
        self.count += rows.shape[1]
        self.total += rows.sum(1, dtype=np.float64)
        if self.covariance:
            self.waiting.append(rows)
            if sum(r.size for r in self.waiting) > _FLUSH_VALUES:
                self._flush()

    def _flush(self) -> None:
        if self.waiting:
            rows = np.concatenate(self.waiting, axis=1)
            # About a point near the mean, or float32 would lose the spread beside it.
            if self.shift is None:
                self.shift = rows.mean(axis=1, keepdims=True, dtype=np.float64).astype(np.float32)
            rows = rows - self.shift
            product = np.matmul(rows.transpose(0, 2, 1), rows).astype(np.float64)
            self.second = product if self.second is None else self.second + product
            self.waiting.clear()

    def moments(self) -> Moments:
        """What was counted."""
        self._flush()
        mean = self.total / self.count
        second = None
        if self.second is not None and self.shift is not None:
            shift = self.shift[:, 0].astype(np.float64)
            cross = np.einsum("gi,gj->gij", shift, mean - shift / 2)
            second = self.second / self.count + cross + cross.transpose(0, 2, 1)
        return Moments(self.count, mean, second)


def pooled(layers: Sequence[Layer], moments: Mapping[str, Moments]) -> dict[str, Moments]:
    """Moments of all of ``layers``: those of equal weights are one's, reached by samples or not.

    Branches often hold one weight twice, which goes on being stored once if it is rounded alike.
    """
    found = {}
    for alike in _equal(layers):
        known = [moments[layer.id] for layer in alike if layer.id in moments]
        if known:
            found.update(dict.fromkeys((layer.id for layer in alike), _together(known)))
    return found


def _equal(layers: Sequence[Layer]) -> Iterator[list[Layer]]:
    groups: dict[tuple[Any, ...], list[list[Layer]]] = {}
    for layer in layers:
        place = groups.setdefault((layer.kind, layer.slot, layer.shape, layer.groups), [])
        for alike in place:
            if np.array_equal(alike[0].weight, layer.weight):
                alike.append(layer)
                break
        else:
            place.append([layer])
    return (alike for place in groups.values() for alike in place)


def _together(known: Sequence[Moments]) -> Moments:
    if len(known) == 1:
        return known[0]
    count = sum(m.count for m in known)
    mean = np.asarray(sum(m.mean * (m.count / count) for m in known), np.float64)
    seconds = [m.second * (m.count / count) for m in known if m.second is not None]
    second = np.asarray(sum(seconds), np.float64) if len(seconds) == len(known) else None
    return Moments(count, mean, second)
