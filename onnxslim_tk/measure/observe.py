"""What samples show about a model: shapes, ranges of tensors, and moments of layer inputs."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, Final

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnxslim_tk.graph.layers import Layer, layers
from onnxslim_tk.graph.model import Model, to_parts
from onnxslim_tk.graph.order import ordered
from onnxslim_tk.graph.stored import Stored
from onnxslim_tk.kernels.ranges import Histogram
from onnxslim_tk.measure.foreign import behind_foreign, prune
from onnxslim_tk.measure.padding import Steps, real_rows, real_steps, without_padding
from onnxslim_tk.measure.rows import input_rows, row_width
from onnxslim_tk.measure.runtime import Feed, Session, is_big

Array = NDArray[Any]
Floats = NDArray[np.float64]

_FETCH_BYTES: Final = 1 << 30
_RANGE_VALUES: Final = 32768
_FEWEST_ROWS: Final = 8000
_MOST_ROWS: Final = 12000
_ROWS_PER_COLUMN: Final = 4
_DECODING: Final = ("Cast", "DequantizeLinear", "Mul", "Transpose")
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


@dataclass(slots=True)
class Channels:
    """Largest magnitude and mean square of each channel of a layer's input, ``(channels,)``."""

    peak: Floats
    square: Floats


@dataclass(slots=True)
class Statistics:
    """Moments by layer id, histograms and channels by tensor name, shapes of the first run."""

    moments: dict[str, Moments] = field(default_factory=dict)
    ranges: dict[str, Histogram] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    channels: dict[str, Channels] = field(default_factory=dict)

    @property
    def extents(self) -> dict[str, tuple[float, float]]:
        """Lowest and highest value of each tensor, by name."""
        return {name: (seen.low, seen.high) for name, seen in self.ranges.items()}


def with_outputs(model: Model, names: Iterable[str]) -> Stored:
    """The model with ``names`` as its only outputs; nodes that none needs are left out."""
    proto, weights = to_parts(model)
    del proto.graph.output[:]
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    return Stored(prune(proto).SerializeToString(), weights)


def inner_tensors(model: Model) -> list[str]:
    """Names of all activations of the outermost graph that a run can give out."""
    behind = behind_foreign(model) | _decoded(model)
    return [
        tensor.name
        for node in model.graph.nodes
        for tensor in node.outputs
        if tensor.name and tensor.name not in behind and not _depends_on_nothing(node)
    ]


def _decoded(model: Model) -> set[str]:
    """Names of weights that are made of values and a scale, both constants."""
    found: set[str] = set()
    for node in ordered(model.graph):
        fixed = all(isinstance(t, gs.Constant) or t.name in found for t in node.inputs)
        if node.op in _DECODING and fixed:
            found.update(tensor.name for tensor in node.outputs)
    return found


def _depends_on_nothing(node: Any) -> bool:
    return not any(t.inputs or t.__class__.__name__ == "Variable" for t in node.inputs)


def fetch(model: Model, names: Sequence[str], feeds: Iterable[Feed]) -> Iterator[dict[str, Array]]:
    """The named inner tensors for each feed, one dict a feed; inputs of the model included."""
    inputs = {tensor.name for tensor in model.graph.inputs}
    wanted = [name for name in dict.fromkeys(names) if name not in inputs]
    session = _session(model, wanted) if wanted else None
    for feed in feeds:
        values = {name: np.asarray(feed[name]) for name in names if name in inputs}
        if session is not None:
            needed = {info.name for info in session.inputs}
            values |= session.run({k: v for k, v in feed.items() if k in needed}, wanted)
        yield values


def _session(model: Model, names: Sequence[str]) -> Session:
    """A session that gives out ``names``, of a big model with its weights where they lie."""
    part = with_outputs(model, names)
    return Session(part, lean=is_big(part))


def observed_shapes(model: Model, feed: Feed) -> dict[str, tuple[int, ...]]:
    """Shapes of the inputs and of all inner tensors in one run; sequences and the like have none.

    Raises SessionError where the model doesn't run.
    """
    shapes = {name: tuple(np.asarray(value).shape) for name, value in feed.items()}
    names = inner_tensors(model)
    if names:
        session = _session(model, names)
        needed = {info.name for info in session.inputs}
        values = session.run({k: v for k, v in feed.items() if k in needed})
        shapes |= {name: tuple(value.shape) for name, value in values.items()}
    return shapes


def observe(
    model: Model,
    feeds: Sequence[Feed],
    wanted: frozenset[str],
    seed: int,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Statistics:
    """Run ``feeds`` and keep what ``wanted`` names: mean, covariance, range, channels.

    Padding, as a mask among the inputs tells it, counts nowhere. Streams: memory grows with
    the model, not with the number of feeds. Layers inside bodies cannot be seen; covariances of
    more than 8192 inputs, or beyond 4 GB in all, are left out. ``progress`` is called with feeds
    done and feeds in all.
    """
    found = Statistics(shapes=dict(shapes or observed_shapes(model, feeds[0])))
    seen = [layer for layer in layers(model) if not layer.path and layer.input.name in found.shapes]
    related = _related(seen) if "covariance" in wanted else set()
    jobs = [_Rows(layer, layer.id in related, len(feeds), seed + k) for k, layer in enumerate(seen)]
    jobs = jobs if wanted & {"mean", "covariance"} else []
    jobs = [job for job in jobs if job.layer.meets_input]
    ranged = _float_tensors(model, found.shapes) if "range" in wanted else []
    histograms = {name: Histogram() for name in ranged}
    spread = {layer.input.name: _Spread(layer) for layer in seen if layer.kind != "Gather"}
    spread = spread if "channels" in wanted else {}
    names = list(dict.fromkeys([*(job.layer.input.name for job in jobs), *ranged, *spread]))
    groups = list(_by_bytes(names, found.shapes))
    done = 0
    for group in groups:
        members = set(group)
        for feed, values in zip(feeds, fetch(model, group, feeds), strict=True):
            real = real_steps(feed)
            for name in members & histograms.keys():
                _add_range(histograms[name], without_padding(values[name], real))
            for name in members & spread.keys():
                spread[name].add(values[name], real)
            for job in jobs:
                if job.layer.input.name in members:
                    job.add(values[job.layer.input.name], real)
            done += 1
            if progress is not None:
                progress(done, len(feeds) * len(groups))
    found.ranges = {name: h for name, h in histograms.items() if h.total}
    found.moments = {job.layer.id: job.moments() for job in jobs if job.count}
    found.channels = {name: s.channels() for name, s in spread.items() if s.count}
    return found


def _float_tensors(model: Model, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    tensors = [*model.graph.inputs, *(t for node in model.graph.nodes for t in node.outputs)]
    return [t.name for t in tensors if t.name in shapes]


def _by_bytes(names: Sequence[str], shapes: Mapping[str, tuple[int, ...]]) -> Iterator[list[str]]:
    group: list[str] = []
    held = 0
    for name in names:
        size = 4 * prod(shapes[name])
        if group and held + size > _FETCH_BYTES:
            yield group
            group, held = [], 0
        group.append(name)
        held += size
    if group:
        yield group


def _add_range(histogram: Histogram, values: Array) -> None:
    if values.dtype != np.float32 or not values.size:
        return
    flat = values.ravel()
    step = -(-flat.size // _RANGE_VALUES)
    # A whole stride could keep step with a row; odd steps meet all channels.
    some = flat[:: step | 1]
    low, high = flat.min(), flat.max()
    if np.isfinite(low) and np.isfinite(high):
        histogram.add(some if step == 1 else np.concatenate([some, [low, high]]))


class _Spread:
    """Accumulates how far each channel of one layer's input reaches."""

    def __init__(self, layer: Layer) -> None:
        self.layer = layer
        self.axis = 1 if layer.kind in ("Conv", "ConvTranspose") else -1
        self.count = 0
        self.peak: Floats = np.zeros(0)
        self.total: Floats = np.zeros(0)

    def add(self, values: Array, real: Steps | None) -> None:
        values = real_rows(self.layer, values, real)
        if values.dtype != np.float32 or not values.size or values.ndim < 2:
            return
        rows = np.moveaxis(values, self.axis, 0).reshape(values.shape[self.axis], -1)
        peak = np.abs(rows).max(axis=1).astype(np.float64)
        if not np.isfinite(peak).all():
            return
        total = np.einsum("cn,cn->c", rows, rows, dtype=np.float64)
        first = not self.count
        self.peak = peak if first else np.maximum(self.peak, peak)
        self.total = total if first else self.total + total
        self.count += rows.shape[1]

    def channels(self) -> Channels:
        return Channels(self.peak, self.total / self.count)


def _related(seen: Sequence[Layer]) -> set[str]:
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


class _Rows:
    """Accumulates the moments of one layer's input rows."""

    def __init__(self, layer: Layer, covariance: bool, feeds: int, seed: int) -> None:
        self.layer = layer
        self.covariance = covariance
        self.width = row_width(layer)
        self.cap = row_limit(layer, feeds)
        self.rng = np.random.default_rng(seed)
        self.count = 0
        self.total: Floats = np.zeros((layer.groups, self.width))
        self.shift: NDArray[np.float32] | None = None
        self.second: Floats | None = None
        self.waiting: list[Array] = []

    def add(self, values: Array, real: Steps | None) -> None:
        values = real_rows(self.layer, values, real)
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
        self._flush()
        mean = self.total / self.count
        second = None
        if self.second is not None and self.shift is not None:
            shift = self.shift[:, 0].astype(np.float64)
            cross = np.einsum("gi,gj->gij", shift, mean - shift / 2)
            second = self.second / self.count + cross + cross.transpose(0, 2, 1)
        return Moments(self.count, mean, second)
