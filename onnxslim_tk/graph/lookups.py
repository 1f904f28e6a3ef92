"""Tables that are looked up: products with one-hot rows, and what is done to each row behind."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper

from onnxslim_tk.graph.domains import STANDARD_DOMAINS
from onnxslim_tk.graph.edit import (
    add_node,
    constant,
    input_at,
    is_constant,
    producer,
    remove_node,
    rename_key,
    set_input,
    values_of,
)
from onnxslim_tk.graph.inference import Types
from onnxslim_tk.graph.model import Graph, Model, Node, Tensor
from onnxslim_tk.graph.pointwise import Spelled, constants_of, is_pointwise

Array = NDArray[Any]
_INTEGERS: Final[dict[int, type[Any]]] = {
    TensorProto.INT32: np.int32,
    TensorProto.INT64: np.int64,
}
# Before, Clip knew no integers.
_CLIPS_INTEGERS: Final = 12
_AXES_ARE_INPUTS: Final = 13


@dataclass(frozen=True, slots=True, eq=False)
class OneHot:
    """The numbers, of element type ``dtype``, that one-hot rows stand for.

    ``squeezes`` where a last axis of one place became that of the rows; ``wraps`` where negative
    numbers count from the end.
    """

    numbers: Tensor
    dtype: type[Any]
    squeezes: bool
    wraps: bool


def one_hot_of(product: Node, types: Types, opset: int) -> OneHot | None:
    """The one-hot rows that a MatMul multiplies by a constant table; None for other products.

    Such rows come of a OneHot, or of a comparison with 0, 1, 2, ... made a float.
    """
    if product.op != "MatMul" or opset < _CLIPS_INTEGERS or len(product.inputs) != 2:
        return None
    table, maker = product.inputs[1], producer(product.inputs[0])
    if not is_constant(table) or table.dtype != np.float32 or len(table.shape) != 2:
        return None
    if maker is not None and maker.op == "Cast" and _to_float(maker.attrs.get("to")):
        maker = producer(maker.inputs[0]) if maker.domain in STANDARD_DOMAINS else None
    if maker is None or maker.domain not in STANDARD_DOMAINS:
        return None
    reads = {"Equal": _compared, "OneHot": _encoded}.get(maker.op)
    found = None if reads is None else reads(maker, types, int(table.shape[0]))
    return found if found is not None and np.isfinite(values_of(table)).all() else None


def _compared(equal: Node, types: Types, rows: int) -> OneHot | None:
    for numbers, counted in (equal.inputs, equal.inputs[::-1]):
        known = types.get(numbers.name)
        if not is_constant(counted) or is_constant(numbers) or known is None:
            continue
        dtype = _INTEGERS.get(known.element)
        counts = bool(known.shape) and _counts(values_of(counted), rows, len(known.shape or ()))
        if dtype is not None and counts and _ends_in_one(numbers, types):
            return OneHot(numbers, dtype, squeezes=True, wraps=False)
    return None


def _encoded(encode: Node, types: Types, rows: int) -> OneHot | None:
    numbers, depth, ends = encode.inputs
    known = types.get(numbers.name)
    dtype = None if known is None else _INTEGERS.get(known.element)
    if dtype is None or encode.attrs.get("axis", -1) != -1 or is_constant(numbers):
        return None
    if not (is_constant(depth) and is_constant(ends)):
        return None
    plain = values_of(depth).reshape(-1).tolist() == [rows]
    plain = plain and values_of(ends).tolist() == [0, 1]
    return OneHot(numbers, dtype, squeezes=False, wraps=True) if plain else None


def _to_float(to: Any) -> bool:
    if isinstance(to, int) or to is None:
        return to == TensorProto.FLOAT
    return bool(helper.np_dtype_to_tensor_dtype(np.dtype(to)) == TensorProto.FLOAT)


def _counts(values: Array, rows: int, rank: int) -> bool:
    """Whether ``values`` are 0, 1, 2, ... along the last axis, one for each row."""
    along = 0 < values.ndim <= rank and values.size == values.shape[-1] == rows
    return along and bool((values.reshape(-1) == np.arange(rows)).all())


def _ends_in_one(tensor: Tensor, types: Types) -> bool:
    """Whether the last axis of ``tensor`` has one place, behind an Expand too."""
    known = types.get(tensor.name)
    if known is not None and known.shape and known.shape[-1] == 1:
        return True
    node = producer(tensor)
    if node is None or node.op != "Expand" or not _ends_in_one(node.inputs[0], types):
        return False
    return _last(node.inputs[1]) == 1


def _last(shape: Tensor) -> int | None:
    """The last number of a shape that is put together in the graph."""
    if is_constant(shape):
        values = values_of(shape).reshape(-1)
        return int(values[-1]) if values.size else None
    node = producer(shape)
    if node is None or node.op not in ("Cast", "Concat", "Identity"):
        return None
    return _last(node.inputs[-1])


def write_look_up(model: Model, graph: Graph, product: Node, found: OneHot) -> None:
    """Let the product with one-hot rows look its rows up instead.

    A number that no row has made a row of zeros, and finds one: it is clipped to the ends, of
    which -1 is the last row too.
    """
    table = values_of(product.inputs[1])
    least, none, count = (
        constant(model, np.array(end, found.dtype)) for end in (-1, 0, table.shape[0])
    )
    numbers = found.numbers
    if found.squeezes:
        axes, attrs = [constant(model, np.array([-1]))], {}
        if model.graph.opset < _AXES_ARE_INPUTS:
            axes, attrs = [], {"axes": [-1]}
        numbers = add_node(model, graph, "Squeeze", [numbers, *axes], attrs=attrs)
    if found.wraps:
        negative = add_node(model, graph, "Less", [numbers, none])
        moved = add_node(model, graph, "Add", [numbers, count])
        numbers = add_node(model, graph, "Where", [negative, moved, numbers])
    numbers = add_node(model, graph, "Clip", [numbers, least, count])
    rows = np.concatenate([table, np.zeros_like(table[:1])])
    product.op, product.attrs = "Gather", {"axis": 0}
    product.inputs = [constant(model, rows), numbers]


def rows_behind(gather: Node, graph: Graph, outputs: set[str], types: Types) -> Spelled | None:
    """What is done to every row that ``gather`` finds in a constant table, value by value.

    As far as it comes down to one tensor; None where there is nothing of the kind.
    """
    table, known = input_at(gather, 0), types.get(gather.outputs[0].name)
    if gather.op != "Gather" or gather.attrs.get("axis", 0) != 0 or known is None:
        return None
    if table is None or not is_constant(table) or table.dtype != np.float32 or not known.shape:
        return None
    if len(table.shape) != 2 or len(table.outputs) != 1 or table.name in outputs:
        return None
    here, rank, width = {id(node) for node in graph.nodes}, len(known.shape), int(table.shape[1])
    nodes: list[Node] = []
    inside = [gather.outputs[0]]
    best: Spelled | None = None
    while (node := _next(nodes, inside, here, rank, width)) is not None:
        nodes.append(node)
        inside.append(node.outputs[0])
        ends = [t for t in inside if t.name in outputs or _read_outside(t, nodes)]
        if len(ends) == 1 and ends[0] is node.outputs[0]:
            best = Spelled(inside[0], tuple(nodes), ends[0])
    return best


def _next(
    nodes: list[Node], inside: list[Tensor], here: set[int], rank: int, width: int
) -> Node | None:
    """A node that reads only what is ``inside``, and constants alike for all rows."""
    for reader in (reader for tensor in inside for reader in tensor.outputs):
        if id(reader) not in here or _is_in(nodes, reader) or not is_pointwise(reader):
            continue
        moving = [t for t in reader.inputs if not t.is_empty() and not is_constant(t)]
        if all(_is_in(inside, tensor) for tensor in moving) and all(
            values.ndim <= rank and (values.size == 1 or values.size == width == values.shape[-1])
            for values in constants_of(reader)
        ):
            return reader
    return None


def _is_in(held: Sequence[Any], one: Any) -> bool:
    return any(one is other for other in held)


def _read_outside(tensor: Tensor, nodes: list[Node]) -> bool:
    return any(not _is_in(nodes, reader) for reader in tensor.outputs)


def fold_rows(model: Model, graph: Graph, path: str, gather: Node, behind: Spelled) -> bool:
    """Let the table hold what was done to its rows; False where that isn't finite."""
    table = values_of(gather.inputs[0]).astype(np.float64)
    width = table.shape[1]
    rows = behind.values(
        table, model.graph.opset, lambda held: held.reshape(-1 if held.size == width else ())
    )
    if rows is None:
        return False
    with np.errstate(over="ignore"):
        rows = rows.astype(np.float32)
    if not np.isfinite(rows).all():
        return False
    set_input(gather, 0, constant(model, rows))
    for node in behind.nodes:
        remove_node(graph, node)
    rename_key(model, path + gather.outputs[0].name, path + behind.result.name)
    gather.outputs = [behind.result]
    return True
