"""Channel groups: which channels of which tensors must be cut together, and what forbids it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxslim_tk.graph.channel_flow import Axes, Flow, Part, is_standard
from onnxslim_tk.graph.channel_rules import RULES
from onnxslim_tk.graph.inference import sizes_given
from onnxslim_tk.graph.layers import Layer
from onnxslim_tk.graph.model import Graph, Model, Node
from onnxslim_tk.graph.order import ordered

Indices = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """Channels that can be cut.

    ``id`` names the layers that make them, ``count`` is how many there are. ``parts`` says for
    each channel which others it is alike: of one part, any is as wide as another, and some have
    to stay. ``attention`` says that a product of two activations meets them.
    """

    id: tuple[str, ...]
    count: int
    parts: Indices
    touched: tuple[Part, ...]
    roots: Indices
    view: "View"
    attention: bool

    @property
    def producers(self) -> tuple[Layer, ...]:
        """The layers that lose outputs."""
        return _layers(self.touched, "produces")

    @property
    def passing(self) -> tuple[Layer, ...]:
        """The layers that lose inputs and outputs alike, such as depthwise convolutions."""
        return _layers(self.touched, "passes")

    @property
    def consumers(self) -> tuple[Layer, ...]:
        """The layers that lose inputs."""
        return _layers(self.touched, "consumes")

    @property
    def layers(self) -> tuple[Layer, ...]:
        """Every layer that a cut changes, once: producers first."""
        every = (*self.producers, *self.passing, *self.consumers)
        return tuple({layer.id: layer for layer in every}.values())

    def channels_on(self, labels: Indices) -> Indices:
        """For each label the number of its channel in the group, or -1."""
        place = np.full(len(self.view.roots), -1, np.int64)
        place[self.roots] = np.arange(self.count)
        return np.asarray(place[self.view.roots[labels]], np.int64)

    @property
    def width(self) -> int:
        """The fewest outputs of a layer that make one channel."""
        return min(
            int(np.bincount(on[on >= 0], minlength=self.count).min())
            for on in (self.channels_on(p.labels) for p in self.touched if p.role == "produces")
        )


@dataclass(frozen=True, slots=True)
class Barrier:
    """Channels that can't be cut: the id of the layer that makes them, and why."""

    id: tuple[str, ...]
    reason: str


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """What was found of a model's channels: labels, and the channel that each belongs to."""

    flow: Flow
    roots: NDArray[Any]


def channel_groups(
    model: Model, shapes: Mapping[str, tuple[int, ...]], attention: str = "heads"
) -> list[Group | Barrier]:
    """The channels that layers make, as groups or barriers, in the order of the graph.

    ``shapes`` are by tensor name, as seen in a run. Of attention, whole ``heads`` are channels or,
    with ``size``, the same place in all of them.
    """
    if _is_open(model, shapes):
        shapes = {**sizes_given(model, shapes), **shapes}
    view = _followed(model, shapes, outer=False)
    found = _groups(view)
    if attention == "size" or not view.flow.attended:
        return found
    others = _groups(_followed(model, shapes, outer=True))
    heads = [group for group in others if isinstance(group, Group) and group.attention]
    makers = {layer.id for group in heads for layer in group.producers}
    rest = [group for group in found if isinstance(group, Group) and not group.attention]
    barriers = [b for b in found if isinstance(b, Barrier) and b.id[0] not in makers]
    named = {layer.id for group in (*rest, *heads) for layer in group.producers}
    # Places in heads that could go, where heads can't.
    reason = "products of activations tie its channels"
    lost = [g for g in found if isinstance(g, Group) and g.attention]
    names = dict.fromkeys(layer.id for group in lost for layer in group.producers)
    return [*rest, *heads, *barriers, *(Barrier((n,), reason) for n in names if n not in named)]


def _is_open(model: Model, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether a run doesn't show all shapes."""
    return not shapes or any(list(node.subgraphs()) for node in model.graph.nodes)


def _followed(model: Model, shapes: Mapping[str, tuple[int, ...]], outer: bool) -> View:
    flow = Flow(model, shapes, outer)
    for tensor in model.graph.inputs:
        flow.write(tensor, flow.staying(tensor))
    _follow(flow, model.graph, "")
    roots, _ = flow.channels()
    return View(flow, roots)


def _follow(flow: Flow, graph: Graph, path: str) -> None:
    for node in ordered(graph):
        flow.graph, flow.path = graph, path
        inner = [(name, v) for name, v in node.attrs.items() if hasattr(v, "nodes")]
        if inner:
            _branch(flow, node, inner, path)
            flow.graph, flow.path = graph, path
            continue
        inputs = [flow.read(node, slot) for slot in range(len(node.inputs))]
        flow.settle(node)
        for tensor, axes in zip(node.outputs, _ruled(flow, node, inputs), strict=False):
            flow.write(tensor, axes)


def _ruled(flow: Flow, node: Node, inputs: Sequence[Axes | None]) -> Sequence[Axes | None]:
    rule = RULES.get(node.op) if is_standard(node) else None
    if rule is None:
        return flow.hold(node, inputs)
    known = [axes for axes in inputs if axes is not None]
    if len(known) < len(inputs):
        return _unknown(flow, node, inputs)
    found = rule(flow, node, known)
    for axes, tensor in zip(found, node.outputs, strict=False):
        shape = flow.shapes.get(tensor.name)
        if axes is not None and shape is not None and tuple(map(len, axes)) != tuple(shape):
            # What doesn't come out as it was seen is not understood.
            flow.hold(node, (*inputs, axes))
            return flow.hold(node)
    return found


def _unknown(flow: Flow, node: Node, inputs: Sequence[Axes | None]) -> list[Axes | None]:
    behind = [layer for layer in flow.layers(node) if not layer.is_dense]
    reason = f"the shape of what {flow.label(node)} reads is not known"
    if behind:
        reason = f"the weight of {flow.label(node)} is stored behind a scale"
    for axes in inputs:
        flow.fix(axes or (), reason)
    return [flow.staying(tensor) for tensor in node.outputs]


def _branch(flow: Flow, node: Node, inner: Sequence[tuple[str, Graph]], path: str) -> None:
    """If: its outputs are those of either body. Loop and Scan: what goes in and out stays."""
    reason, given = flow.reason(node), []
    for slot in range(len(node.inputs)):
        flow.fix(flow.read(node, slot) or (), reason)
    for name, body in inner:
        key = path + next((t.name for t in node.outputs if t.name), "")
        for tensor in body.inputs:
            flow.write(tensor, flow.staying(tensor))
        _follow(flow, body, f"{key}/{name}/")
        given.append([flow.of(tensor) for tensor in body.outputs])
    flow.path = path
    for k, tensor in enumerate(node.outputs):
        ends: list[Axes | None] = [axes[k] for axes in given] if node.op == "If" else [None]
        first, whole = ends[0], [axes for axes in ends if axes is not None]
        ranks = {len(axes) for axes in whole}
        if first is None or len(whole) < len(ends) or len(ranks) > 1:
            for axes in whole:
                flow.fix(axes, reason)
            flow.write(tensor, flow.staying(tensor))
            continue
        for other in whole[1:]:
            for a, b in zip(first, other, strict=True):
                flow.tie(a, b, reason)
        flow.write(tensor, first)
    if node.op != "If":
        for inside in (axes for body in given for axes in body):
            flow.fix(inside or (), reason)


def _groups(view: View) -> list[Group | Barrier]:
    flow, roots = view.flow, view.roots
    _, reasons = flow.channels()
    touched: dict[int, list[int]] = {}
    counts: dict[int, list[int]] = {}
    for k, part in enumerate(flow.parts):
        for root, count in zip(*np.unique(roots[part.labels], return_counts=True), strict=True):
            touched.setdefault(int(root), []).append(k)
            counts.setdefault(int(root), []).append(int(count))
    members: dict[tuple[int, ...], list[int]] = {}
    barred: dict[int, str] = {}
    for root, marks in touched.items():
        makes = [k for k in marks if flow.parts[k].role == "produces"]
        reason = reasons.get(root)
        if reason is None and not any(flow.parts[k].role == "consumes" for k in marks):
            reason = "no layer reads the channels"
        trouble = next(filter(None, (_trouble(flow.parts[k].layer) for k in marks)), "")
        if reason is None and trouble:
            reason = trouble
        if reason is not None:
            for k in makes:
                barred.setdefault(k, reason)
        elif makes:
            members.setdefault(tuple(marks), []).append(root)
    return list(_ordered(view, members, barred, counts))


def _trouble(layer: Layer) -> str:
    if not layer.is_dense:
        return f"the weight of {layer.kind} '{layer.id}' is stored behind a scale"
    return ""


def _ordered(
    view: View,
    members: Mapping[tuple[int, ...], Sequence[int]],
    barred: Mapping[int, str],
    counts: Mapping[int, Sequence[int]],
) -> Iterator[Group | Barrier]:
    parts, attended = view.flow.parts, set()
    for labels in view.flow.attended:
        attended.update(view.roots[labels].tolist())
    names: set[tuple[str, ...]] = set()
    free: set[str] = set()
    groups = []
    for marks, roots in members.items():
        touched = tuple(parts[k] for k in marks)
        widths = [tuple(counts[root]) for root in roots]
        kinds = {width: k for k, width in enumerate(dict.fromkeys(widths))}
        key = tuple(layer.id for layer in _layers(touched, "produces"))
        free.update(key)
        given, number = key, 1
        while given in names:
            number += 1
            given = (*key[:-1], f"{key[-1]}#{number}")
        names.add(given)
        group = Group(
            given,
            len(roots),
            np.array([kinds[width] for width in widths], np.int64),
            touched,
            np.array(roots, np.int64),
            view,
            any(root in attended for root in roots),
        )
        groups.append((min(k for k in marks if parts[k].role == "produces"), group))
    left: dict[str, tuple[int, str]] = {}
    for k, reason in barred.items():
        left.setdefault(parts[k].layer.id, (k, reason))
    bars = [(k, Barrier((name,), why)) for name, (k, why) in left.items() if name not in free]
    every: list[tuple[int, Group | Barrier]] = [*groups, *bars]
    yield from (found for _, found in sorted(every, key=lambda pair: pair[0]))


def _layers(touched: Sequence[Part], role: str) -> tuple[Layer, ...]:
    found = {part.layer.id: part.layer for part in touched if part.role == role}
    return tuple(found.values())
