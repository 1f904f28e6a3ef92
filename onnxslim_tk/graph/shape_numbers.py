"""Where the numbers of a shape come from: constants that can be rewritten, or sizes in the run."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from onnxslim_tk.graph.channel_flow import Flow, Labels
from onnxslim_tk.graph.edit import is_constant, producer, values_of
from onnxslim_tk.graph.model import Node, Tensor

_PASSING: Final = ("Cast", "Identity", "Squeeze", "Unsqueeze")
_SHAPED: Final = ("ConstantOfShape", "Expand", "Reshape")


@dataclass(frozen=True, slots=True, eq=False)
class Number:
    """One number of a shape: entry ``index`` of the constant in input ``slot`` of ``node``.

    Where ``value`` is None it is found in the run, as the size of an axis of ``measured`` labels.
    """

    value: int | None
    node: Node
    slot: int = 0
    index: int = 0
    measured: Labels | None = None


def numbers_of(flow: Flow, node: Node, slot: int) -> list[Number] | None:
    """The numbers in input ``slot`` of ``node`` in order; None where they are calculated."""
    tensor = node.inputs[slot]
    if is_constant(tensor):
        flat = values_of(tensor).ravel()
        return [Number(int(v), node, slot, k) for k, v in enumerate(flat)]
    maker = producer(tensor)
    if maker is None:
        return None
    if maker.op in _PASSING:
        return numbers_of(flow, maker, 0)
    if maker.op == "Shape":
        return _sizes(flow, maker)
    if maker.op == "Concat":
        parts = [numbers_of(flow, maker, k) for k in range(len(maker.inputs))]
        known = [part for part in parts if part is not None]
        return [n for part in known for n in part] if len(known) == len(parts) else None
    if maker.op in ("Gather", "Slice"):
        held = numbers_of(flow, maker, 0)
        return None if held is None else _picked(maker, held)
    return None


def measured_axes(flow: Flow, node: Node, reason: str) -> None:
    """Let channels stay whose number a Shape gives to what calculates with it.

    Shapes of other tensors are no calculation: there rules compare the channels.
    """
    sizes = _sizes(flow, node)
    if sizes is not None:
        held = [number.measured for number in sizes]
        flow.fix(_escaping(flow, node.outputs[0], held), reason)


def _sizes(flow: Flow, maker: Node) -> list[Number] | None:
    axes = None if is_constant(maker.inputs[0]) else flow.read(maker, 0)
    if axes is None:
        return None
    start, end = int(maker.attrs.get("start", 0)), maker.attrs.get("end", len(axes))
    return [Number(None, maker, measured=labels) for labels in axes[start : int(end)]]


def _picked(node: Node, held: Sequence[Any]) -> list[Any] | None:
    """What a Gather or Slice with constant places takes of a vector; None where they aren't."""
    given = [t for t in node.inputs[1:] if not t.is_empty()]
    rest = [values_of(t).ravel() for t in given if is_constant(t)]
    if len(rest) < len(given):
        return None
    if node.op == "Gather":
        inside = all(-len(held) <= int(k) < len(held) for k in rest[0])
        return [held[int(k)] for k in rest[0]] if inside else None
    if not rest:
        rest = [np.array(node.attrs[name]) for name in ("starts", "ends")]
    step = int(rest[3][0]) if len(rest) > 3 else 1
    return list(held[int(rest[0][0]) : int(rest[1][0]) : step])


def _escaping(flow: Flow, tensor: Tensor, held: Sequence[Labels | None]) -> list[Labels]:
    """Those of ``held`` that others read than operators whose shapes are followed."""
    moving = [labels for labels in held if labels is not None and labels.any()]
    if not moving:
        return []
    if tensor.name in flow.outputs:
        return moving
    found: list[Labels] = []
    for reader in tensor.outputs:
        if reader.op in _SHAPED:
            continue
        passed: Sequence[Labels | None] | None = None
        if reader.op in (*_PASSING, "Concat"):
            passed = held
        elif reader.op in ("Gather", "Slice") and reader.inputs[0] is tensor:
            passed = _picked(reader, held)
        found += moving if passed is None else _escaping(flow, reader.outputs[0], passed)
    return found
