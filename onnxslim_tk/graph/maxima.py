"""The greatest value of a function over many places, found from the ends of its argument."""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from onnxslim_tk.graph.domains import STANDARD_DOMAINS
from onnxslim_tk.graph.edit import (
    add_node,
    constant,
    input_at,
    is_constant,
    remove_node,
    values_of,
)
from onnxslim_tk.graph.inference import Types
from onnxslim_tk.graph.model import Graph, Model, Node, Tensor
from onnxslim_tk.graph.pointwise import Course, Spelled, course, spelled_behind

Array = NDArray[Any]
# What the runtime computes together with the layer before, and integers hold in their grid's ends.
_FREE: Final = frozenset(("Clip", "LeakyRelu", "Max", "Min", "Relu"))
# Before, extremes were not taken of integers; from the second on, axes are an input.
_OPSETS: Final = (12, 18)
_FEWEST: Final = 8


@dataclass(frozen=True, slots=True, eq=False)
class Peak:
    """A pool that keeps the greatest value of ``spelled`` along ``axes``."""

    pool: Node
    axes: tuple[int, ...]
    keeps: bool
    spelled: Spelled
    course: Course


def peak_of(pool: Node, graph: Graph, outputs: set[str], types: Types, opset: int) -> Peak | None:
    """``pool`` as the greatest value of a function that its ends tell; None where it isn't.

    The greatest value of a function that only rises is at its argument's greatest, of one that
    only falls at its least, and of one that falls and then rises at one of the two.
    """
    if opset < _OPSETS[0] or pool.domain not in STANDARD_DOMAINS:
        return None
    axes = _axes(pool, types)
    given = pool.inputs[0] if pool.inputs else None
    alone = given is not None and given.name not in outputs and len(given.outputs) == 1
    if axes is None or given is None or not alone:
        return None
    here = {id(node) for node in graph.nodes}
    found: Peak | None = None
    for spelled in spelled_behind(given, outputs, here, lambda values: values.size == 1):
        known, whole = types.get(spelled.source.name), types.get(given.name)
        same = known is not None and whole is not None and known.shape == whole.shape
        if same and any(node.op not in _FREE for node in spelled.nodes):
            runs = course(spelled, opset)
            keeps = pool.op == "GlobalMaxPool" or bool(pool.attrs.get("keepdims", 1))
            found = found if runs is None else Peak(pool, axes, keeps, spelled, runs)
    return found


def _axes(pool: Node, types: Types) -> tuple[int, ...] | None:
    """The axes that a pool takes the greatest value along, where these hold many places."""
    known = types.get(pool.inputs[0].name) if pool.inputs else None
    if known is None or known.shape is None:
        return None
    rank = len(known.shape)
    if pool.op == "GlobalMaxPool":
        axes = tuple(range(2, rank))
    elif pool.op == "ReduceMax":
        given = input_at(pool, 1)
        if given is not None and not is_constant(given):
            return None
        listed = pool.attrs.get("axes") if given is None else values_of(given).reshape(-1).tolist()
        axes = tuple(sorted(int(axis) % rank for axis in listed or ()))
    else:
        return None
    sizes = [known.shape[axis] for axis in axes]
    places = np.prod([size for size in sizes if size is not None], initial=1.0)
    return axes if axes and (None in sizes or places >= _FEWEST) else None


def write_peak(model: Model, graph: Graph, peak: Peak, path: str) -> None:
    """Take the ends of the argument first, and the function of these only."""
    spelled, result = peak.spelled, peak.pool.outputs[0]
    origin = model.origins.get(path + result.name, (path + result.name,))
    remove_node(graph, peak.pool)
    ends = {"rising": ("ReduceMax",), "falling": ("ReduceMin",)}
    both = ("ReduceMax", "ReduceMin")
    tops = [
        _function_of(model, graph, spelled, _end(model, graph, op, peak))
        for op in ends.get(peak.course, both)
    ]
    for node in spelled.nodes:
        remove_node(graph, node)
    if len(tops) == 1:
        tops[0].inputs[0].outputs = [result]
    else:
        add_node(model, graph, "Max", tops, [result])
    model.origins[path + result.name] = origin


def _end(model: Model, graph: Graph, op: str, peak: Peak) -> Tensor:
    """The greatest or the least of a function's argument, where the pool took the function's."""
    attrs: dict[str, Any] = {"keepdims": int(peak.keeps)}
    inputs = [peak.spelled.source]
    if model.graph.opset < _OPSETS[1]:
        attrs["axes"] = list(peak.axes)
    else:
        inputs.append(constant(model, np.array(peak.axes, np.int64)))
    return add_node(model, graph, op, inputs, attrs=attrs)


def _function_of(model: Model, graph: Graph, spelled: Spelled, argument: Tensor) -> Tensor:
    """The nodes of ``spelled`` once more, behind ``argument``, which may have fewer axes."""
    made: dict[int, Tensor] = {id(spelled.source): argument}
    for node in spelled.nodes:
        inputs = [
            constant(model, values_of(t).reshape(()))
            if not t.is_empty() and is_constant(t)
            else made.get(id(t), t)
            for t in node.inputs
        ]
        attrs = dict(node.attrs)
        made[id(node.outputs[0])] = add_node(model, graph, node.op, inputs, attrs=attrs)
    return made[id(spelled.result)]
