"""Activations that cost nothing in integers: what the ends and the reading of a grid stand for."""

from dataclasses import dataclass, replace
from math import isfinite
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from onnxslim_tk.graph.domains import STANDARD_DOMAINS
from onnxslim_tk.graph.edit import input_at, is_constant, producer, sole_reader, values_of
from onnxslim_tk.graph.model import Node, Tensor

Array = NDArray[Any]
_HARD_SIGMOID: Final = (0.2, 0.5)


@dataclass(frozen=True, slots=True, eq=False)
class Absorbed:
    """Nodes behind an operator that vanish into the grid of their result.

    What the operator gives, ``x``, becomes ``clip(factor * x + shift, low, high)``: the grid's
    ends clip, and reading with other numbers than were written scales and shifts. ``least``, per
    channel or one number, is a floor that no end of a grid can stand for.
    """

    nodes: tuple[Node, ...] = ()
    factor: float = 1.0
    shift: float = 0.0
    low: float | None = None
    high: float | None = None
    least: Array | None = None

    @property
    def result(self) -> Tensor:
        """The tensor that the last of the nodes gives."""
        return self.nodes[-1].outputs[0]


@dataclass(frozen=True, slots=True, eq=False)
class Gate:
    """``x * clip(alpha * x + beta, 0, 1)``: a HardSwish, in one node or two.

    ``node`` gives the product; ``inner`` is the HardSigmoid where that is a node of its own.
    """

    node: Node
    inner: Node | None
    source: Tensor
    alpha: float
    beta: float

    @property
    def floor(self) -> float:
        """The gate is shut from here down, so nothing below has to be told apart."""
        return -self.beta / self.alpha


def absorbed_behind(node: Node, outputs: set[str]) -> Absorbed | None:
    """What behind ``node`` its grid can stand for, as far as each tensor has just one reader.

    ``outputs`` names the tensors that a graph gives out.
    """
    found = Absorbed()
    tensor = node.outputs[0]
    while (reader := sole_reader(tensor, outputs)) is not None:
        longer = _with(found, reader, tensor) if reader.domain in STANDARD_DOMAINS else None
        if longer is None:
            break
        found = replace(longer, nodes=(*found.nodes, reader))
        tensor = reader.outputs[0]
    return found if found.nodes else None


def _with(found: Absorbed, node: Node, source: Tensor) -> Absorbed | None:
    """``found`` with ``node`` behind it, or None where a grid can't stand for that."""
    if found.least is not None:
        return None
    if node.op == "HardSigmoid":
        moved = _moved(found, *slope(node))
        return None if moved is None else _clipped(moved, 0.0, 1.0)
    if node.op == "Max":
        return _floored(found, node, source)
    ends = clip_range(node)
    if ends is not None:
        return _clipped(found, *ends)
    line = scalar_affine(node, source)
    return None if line is None else _moved(found, *line)


def _clipped(found: Absorbed, low: float | None, high: float | None) -> Absorbed | None:
    # A grid holds zero, so its ends lie on either side of it.
    if (low is not None and low > 0) or (high is not None and high <= 0):
        return None
    lows = [end for end in (found.low, low) if end is not None]
    highs = [end for end in (found.high, high) if end is not None]
    return replace(found, low=max(lows, default=None), high=min(highs, default=None))


def _moved(found: Absorbed, factor: float, shift: float) -> Absorbed | None:
    low = None if found.low is None else found.low * factor + shift
    high = None if found.high is None else found.high * factor + shift
    known = factor > 0 and isfinite(factor) and isfinite(shift)
    if not known or (low is not None and low > 0) or (high is not None and high <= 0):
        return None
    moved = found.shift * factor + shift
    return replace(found, factor=found.factor * factor, shift=moved, low=low, high=high)


def _floored(found: Absorbed, node: Node, source: Tensor) -> Absorbed | None:
    """A Max with constants: the low end of the grid where that is one number up to zero."""
    if len(node.inputs) != 2:
        return None
    other = node.inputs[1 if node.inputs[0] is source else 0]
    if not is_constant(other) or other.dtype != np.float32:
        return None
    values = values_of(other)
    if not values.size or not np.isfinite(values).all():
        return None
    if values.size == 1 and float(values.item()) <= 0:
        return _clipped(found, float(values.item()), None)
    return replace(found, least=values)


def clip_range(node: Node) -> tuple[float | None, float | None] | None:
    """The ends of a Relu or of a Clip with constant ends; None for every other node."""
    if node.op == "Relu":
        return 0.0, None
    if node.op != "Clip":
        return None
    ends: list[float | None]
    if "min" in node.attrs or "max" in node.attrs:
        ends = [node.attrs.get("min"), node.attrs.get("max")]
    else:
        tensors = [input_at(node, 1), input_at(node, 2)]
        if any(t is not None and not is_constant(t) for t in tensors):
            return None
        ends = [None if t is None else float(values_of(t).item()) for t in tensors]
    return (ends[0], ends[1]) if any(end is not None for end in ends) else None


def slope(node: Node) -> tuple[float, float]:
    """Factor and shift of a HardSigmoid."""
    alpha, beta = _HARD_SIGMOID
    return float(node.attrs.get("alpha", alpha)), float(node.attrs.get("beta", beta))


def scalar_affine(node: Node, source: Tensor) -> tuple[float, float] | None:
    """Factor and shift of an Add, Sub, Mul or Div of ``source`` and one float32 number, or None.

    The number must leave the shape of ``source`` as it is: it has one dimension at most.
    """
    if node.op not in ("Add", "Sub", "Mul", "Div") or len(node.inputs) != 2:
        return None
    first = node.inputs[0] is source
    other = node.inputs[1 if first else 0]
    if other is source or not is_constant(other) or other.dtype != np.float32:
        return None
    values = values_of(other)
    if values.size != 1 or values.ndim > 1:
        return None
    number = float(values.item())
    if node.op == "Add":
        return 1.0, number
    if node.op == "Mul":
        return number, 0.0
    if node.op == "Sub":
        return (1.0, -number) if first else (-1.0, number)
    return (1.0 / number, 0.0) if first and number else None


def gate_of(node: Node, outputs: set[str]) -> Gate | None:
    """``node`` as a gate whose input nothing else reads; None where it isn't one."""
    if node.op == "HardSwish":
        gate = Gate(node, None, node.inputs[0], 1 / 6, 0.5)
        readers = [node]
    else:
        found = _two_nodes(node, outputs)
        if found is None or found.inner is None:
            return None
        gate, readers = found, [node, found.inner]
    source = gate.source
    alone = all(any(reader is known for known in readers) for reader in source.outputs)
    return gate if alone and source.name not in outputs else None


def _two_nodes(node: Node, outputs: set[str]) -> Gate | None:
    if node.op != "Mul" or len(node.inputs) != 2:
        return None
    for source, gated in (node.inputs, node.inputs[::-1]):
        inner = producer(gated)
        if inner is None or inner.op != "HardSigmoid" or inner.inputs[0] is not source:
            continue
        alpha, beta = slope(inner)
        if sole_reader(gated, outputs) is node and alpha > 0 and 0 < beta < 1:
            return Gate(node, inner, source, alpha, beta)
    return None
