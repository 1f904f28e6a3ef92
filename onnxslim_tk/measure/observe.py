"""What samples show about a model: shapes, ranges of tensors, and moments of layer inputs."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, Final

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnxslim_tk.errors import SessionError
from onnxslim_tk.graph.layers import Layer, layers
from onnxslim_tk.graph.model import Model, to_parts
from onnxslim_tk.graph.order import ordered
from onnxslim_tk.graph.stored import Stored
from onnxslim_tk.kernels.ranges import Histogram
from onnxslim_tk.measure.branches import Inner, bring_out, visible_branches
from onnxslim_tk.measure.foreign import behind_foreign, prune
from onnxslim_tk.measure.moments import Moments, Rows, pooled, related
from onnxslim_tk.measure.padding import Steps, real_rows, real_steps, without_padding
from onnxslim_tk.measure.rows import row_sources
from onnxslim_tk.measure.runtime import Feed, Session, is_big

Array = NDArray[Any]
Floats = NDArray[np.float64]

_FETCH_BYTES: Final = 1 << 30
_RANGE_VALUES: Final = 32768
_DECODING: Final = ("Cast", "DequantizeLinear", "Mul", "Transpose")


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


def with_outputs(model: Model, names: Iterable[str], inside: Collection[Inner] = ()) -> Stored:
    """The model with ``names`` as its only outputs; nodes that none needs are left out.

    And with what is wanted from ``inside`` branches.
    """
    proto, weights = to_parts(model)
    del proto.graph.output[:]
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    bring_out(proto, inside)
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


def fetch(
    model: Model, names: Sequence[str], feeds: Iterable[Feed], inside: Collection[Inner] = ()
) -> Iterator[dict[str, Array]]:
    """The named inner tensors for each feed, one dict a feed; inputs of the model included.

    What is wanted from ``inside`` branches goes by its key.
    """
    inputs = {tensor.name for tensor in model.graph.inputs}
    wanted = [name for name in dict.fromkeys(names) if name not in inputs]
    session = _session(model, wanted, inside) if wanted or inside else None
    wanted += [inner.key for inner in inside]
    for feed in feeds:
        values = {name: np.asarray(feed[name]) for name in names if name in inputs}
        if session is not None:
            needed = {info.name for info in session.inputs}
            values |= session.run({k: v for k, v in feed.items() if k in needed}, wanted)
        yield values


def _session(model: Model, names: Sequence[str], inside: Collection[Inner] = ()) -> Session:
    """A session that gives out ``names``, of a big model with its weights where they lie."""
    part = with_outputs(model, names, inside)
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
    the model, not with the number of feeds. Of bodies the branches of If are seen; covariances of
    more than 8192 inputs, or beyond 4 GB in all, are left out. ``progress`` is called with feeds
    done and feeds in all.
    """
    found = Statistics(shapes=dict(shapes or observed_shapes(model, feeds[0])))
    every = list(layers(model))
    seen = [layer for layer in every if not layer.path and layer.input.name in found.shapes]
    branches = _in_branches(model, every)
    jobs = _row_jobs([*seen, *branches], wanted, len(feeds), seed)
    sizes = found.shapes | _inner_shapes(model, feeds[0], jobs)
    jobs = [job for job in jobs if all(name in sizes for name in job.names)]
    inside = {inner.key: inner for job in jobs for inner in job.inside}
    ranged = _float_tensors(model, found.shapes) if "range" in wanted else []
    histograms = {name: Histogram() for name in ranged}
    spread = {layer.input.name: _Spread(layer) for layer in seen if layer.kind != "Gather"}
    spread = spread if "channels" in wanted else {}
    singles = [(name,) for name in [*ranged, *spread]]
    units = list(dict.fromkeys([*(job.names for job in jobs), *singles]))
    groups = list(_by_bytes(units, sizes))
    done = 0
    for group in groups:
        members = set(group)
        names = dict.fromkeys(name for unit in group for name in unit)
        outer = [name for name in names if name not in inside]
        inner = [inside[name] for name in names if name in inside]
        for feed, values in zip(feeds, fetch(model, outer, feeds, inner), strict=True):
            real = real_steps(feed)
            for name in (name for name in histograms if (name,) in members):
                _add_range(histograms[name], without_padding(values[name], real))
            for name in (name for name in spread if (name,) in members):
                spread[name].add(values[name], real)
            for job in jobs:
                if job.names in members:
                    job.add(values, real)
            done += 1
            if progress is not None:
                progress(done, len(feeds) * len(groups))
    found.ranges = {name: h for name, h in histograms.items() if h.total}
    found.moments = {job.layer.id: job.moments() for job in jobs if job.count}
    found.moments |= pooled(branches, found.moments)
    found.channels = {name: s.channels() for name, s in spread.items() if s.count}
    return found


def _float_tensors(model: Model, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    tensors = [*model.graph.inputs, *(t for node in model.graph.nodes for t in node.outputs)]
    return [t.name for t in tensors if t.name in shapes]


def _in_branches(model: Model, every: Sequence[Layer]) -> list[Layer]:
    visible = visible_branches(model)
    return [layer for layer in every if layer.path in visible and not layer.is_half]


def _row_jobs(seen: Sequence[Layer], wanted: frozenset[str], feeds: int, seed: int) -> list[Rows]:
    if not wanted & {"mean", "covariance"}:
        return []
    shown = [(k, layer) for k, layer in enumerate(seen) if row_sources(layer)]
    squared = related([layer for _, layer in shown]) if "covariance" in wanted else set()
    return [Rows(layer, layer.id in squared, feeds, seed + k) for k, layer in shown]


def _inner_shapes(model: Model, feed: Feed, jobs: Sequence[Rows]) -> dict[str, tuple[int, ...]]:
    """Shapes of what lies in branches; none where the runtime won't bring it out."""
    inside = list({inner.key: inner for job in jobs for inner in job.inside}.values())
    if not inside:
        return {}
    try:
        return {k: tuple(v.shape) for k, v in next(iter(fetch(model, [], [feed], inside))).items()}
    except SessionError:
        return {}


def _by_bytes(
    units: Sequence[tuple[str, ...]], shapes: Mapping[str, tuple[int, ...]]
) -> Iterator[list[tuple[str, ...]]]:
    group: list[tuple[str, ...]] = []
    held = 0
    for names in units:
        size = sum(4 * prod(shapes[name]) for name in names)
        if group and held + size > _FETCH_BYTES:
            yield group
            group, held = [], 0
        group.append(names)
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
