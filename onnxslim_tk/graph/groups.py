"""Channel groups: which channels of which tensors must be cut together, and what forbids it."""

from collections.abc import Mapping
from dataclasses import dataclass

from onnxslim_tk.graph.channel_flow import Count, Cut, Flow, Space, is_standard
from onnxslim_tk.graph.channel_rules import JOINT_RULES, RULES, ties
from onnxslim_tk.graph.layers import Layer, layers
from onnxslim_tk.graph.model import Model, Node
from onnxslim_tk.graph.order import ordered


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """Channels that can be cut.

    ``id`` names the layers that make them, ``count`` is how many there are. ``producers`` lose
    outputs, ``passing`` (depthwise) both, ``consumers`` inputs. A channel with index k is entries
    ``k * block`` to ``(k + 1) * block`` on the axis of every one of ``cuts``; ``counts`` are
    numbers in the graph that state how many there are.
    """

    id: tuple[str, ...]
    count: int
    producers: tuple[Layer, ...]
    passing: tuple[Layer, ...]
    consumers: tuple[Layer, ...]
    cuts: tuple[Cut, ...]
    counts: tuple[Count, ...]

    @property
    def layers(self) -> tuple[Layer, ...]:
        """Every layer that a cut changes, once: producers first."""
        found = {layer.id: layer for layer in (*self.producers, *self.passing, *self.consumers)}
        return tuple(found.values())


@dataclass(frozen=True, slots=True)
class Barrier:
    """Channels that can't be cut: the ids of the layers that make them, and why."""

    id: tuple[str, ...]
    reason: str


def channel_groups(model: Model, shapes: Mapping[str, tuple[int, ...]]) -> list[Group | Barrier]:
    """The channels of every Conv, Gemm and MatMul with constant weights, as groups or barriers.

    ``shapes`` are by tensor name; without them some reshapes are barriers. In the order of the
    graph; layers of bodies come last.
    """
    flow = Flow(model, shapes)
    for node in ordered(model.graph):
        _follow(flow, node)
    found = [_group(space) for space in flow.spaces()]
    reason = "the layer lies in a body of a control-flow operator"
    kinds = ("Conv", "Gemm", "MatMul")
    inner = [layer for layer in layers(model) if layer.path and layer.kind in kinds]
    return [*found, *(Barrier((layer.id,), reason) for layer in inner)]


def _follow(flow: Flow, node: Node) -> None:
    spans = [flow.span(tensor) for tensor in node.inputs]
    joint = JOINT_RULES.get(node.op) if is_standard(node) else None
    rule = joint or (RULES.get(node.op) if is_standard(node) else None)
    # Layers make channels even where none come in.
    if not any(spans) and node.op not in ("Conv", "Gemm", "MatMul"):
        return
    if rule is None or (joint is None and any(spans[1:])):
        ties(flow, node, spans)
        return
    out = rule(flow, node, spans)
    if out is None:
        return
    flow.carry(node.outputs[0], out)
    if any(t.outputs or t.name in flow.outputs for t in node.outputs[1:]):
        flow.bar(out, f"a further output of {flow.label(node)} is read")


def _group(space: Space) -> Group | Barrier:
    producers = space.of_role("produces")
    ids = tuple(layer.id for layer in producers)
    consumers = space.of_role("consumes")
    if space.reasons:
        return Barrier(ids, space.reasons[0])
    if not consumers:
        return Barrier(ids, "no layer reads the channels")
    passing = space.of_role("passes")
    cuts, counts = tuple(space.cuts), tuple(space.counts)
    return Group(ids, space.count, producers, passing, consumers, cuts, counts)
