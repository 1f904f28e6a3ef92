"""Nodes that do nothing: which input comes out as it went in."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import helper

from onnxslim_tk.graph.edit import input_at, is_constant, values_of
from onnxslim_tk.graph.inference import TensorType, Types
from onnxslim_tk.graph.model import Node, Tensor

Array = NDArray[Any]
# Exporters write a number beyond any size for the end of an axis whose size they don't know.
_TO_THE_END = 10**9


def unchanged_input(node: Node, types: Types, opset: int, fixed: set[str]) -> Tensor | None:
    """The input that ``node`` gives out as it is, to the bit, if that is certain.

    ``fixed`` names what graphs give out: a mask among it keeps its Dropout.
    """
    source = node.inputs[0]
    known = _type_of(source, types)
    if node.op == "Identity":
        certain = True
    elif node.op == "Dropout":
        certain = _only_infers(node, opset, fixed)
    elif node.op == "Cast":
        certain = known is not None and known.element == _element(node.attrs.get("to"))
    elif node.op == "Transpose":
        perm = node.attrs.get("perm")
        certain = perm is not None and list(perm) == sorted(perm)
    elif node.op == "Pad":
        pads = _numbers(node, 1, "pads")
        certain = pads is not None and not pads.any()
    elif node.op == "Reshape":
        certain = known is not None and _keeps_shape(node, known)
    elif node.op == "Slice":
        certain = _takes_all(node, known)
    else:
        return _neutral(node, types)
    return source if certain else None


def _only_infers(node: Node, opset: int, fixed: set[str]) -> bool:
    if any(mask.outputs or mask.name in fixed for mask in node.outputs[1:]):
        return False
    if opset < 12:
        return opset >= 7
    training = input_at(node, 2)
    return training is None or (is_constant(training) and not values_of(training).any())


def _element(to: Any) -> int | None:
    if to is None or isinstance(to, int):
        return to
    return int(helper.np_dtype_to_tensor_dtype(np.dtype(to)))


def _type_of(tensor: Tensor, types: Types) -> TensorType | None:
    if is_constant(tensor):
        element = _element(tensor.dtype)
        return None if element is None else TensorType(element, tuple(tensor.shape))
    return types.get(tensor.name)


def _numbers(node: Node, slot: int, attribute: str) -> Array | None:
    """Integers that older operator sets hold in an attribute and newer ones in an input.

    None for what isn't constant, and for what is no list of numbers.
    """
    if attribute in node.attrs:
        found = np.asarray(node.attrs[attribute])
    else:
        tensor = input_at(node, slot)
        if tensor is None or not is_constant(tensor):
            return None
        found = values_of(tensor)
    return found if found.ndim == 1 else None


def _keeps_shape(node: Node, known: TensorType) -> bool:
    target = _numbers(node, 1, "shape")
    if target is None or known.shape is None or len(target) != len(known.shape):
        return False
    copies = not node.attrs.get("allowzero", 0)
    free = 0
    for wanted, size in zip(target.tolist(), known.shape, strict=True):
        if wanted == -1:
            free += 1
        elif not (wanted == 0 and copies) and wanted != size:
            return False
    return free <= 1


def _takes_all(node: Node, known: TensorType | None) -> bool:
    """Whether a Slice goes over the whole of every axis that it names."""
    starts, ends = _numbers(node, 1, "starts"), _numbers(node, 2, "ends")
    axes, steps = input_at(node, 3), input_at(node, 4)
    if starts is None or ends is None or starts.any():
        return False
    if steps is not None and not (is_constant(steps) and (values_of(steps) == 1).all()):
        return False
    listed = node.attrs.get("axes", range(len(ends)))
    if axes is not None:
        if not is_constant(axes) or values_of(axes).shape != ends.shape:
            return False
        listed = values_of(axes).tolist()
    shape = None if known is None else known.shape
    for axis, end in zip(listed, ends.tolist(), strict=False):
        size = None if shape is None or not -len(shape) <= axis < len(shape) else shape[axis]
        if end < _TO_THE_END and (size is None or end < size):
            return False
    return True


def _neutral(node: Node, types: Types) -> Tensor | None:
    """The input that an addition of nothing or a multiplication by one gives out."""
    if node.op not in ("Add", "Sub", "Mul", "Div") or len(node.inputs) != 2:
        return None
    pairs = [(0, 1)] if node.op in ("Sub", "Div") else [(0, 1), (1, 0)]
    for kept, other in pairs:
        source, number = node.inputs[kept], node.inputs[other]
        if not is_constant(number) or is_constant(source):
            continue
        values = values_of(number)
        if not values.size or values.dtype.kind not in "iuf":
            continue
        known = _type_of(source, types)
        if _is_neutral(node.op, values) and _adds_no_shape(values.shape, known):
            return source
    return None


def _is_neutral(op: str, values: Array) -> bool:
    if op in ("Mul", "Div"):
        return bool((values == 1).all())
    # Adding +0.0 turns -0.0 into +0.0, and so does subtracting -0.0.
    negative = bool(np.signbit(values).all()) if values.dtype.kind == "f" else op == "Add"
    positive = not np.signbit(values).any() if values.dtype.kind == "f" else op == "Sub"
    return bool((values == 0).all()) and bool(negative if op == "Add" else positive)


def _adds_no_shape(shape: tuple[int, ...], known: TensorType | None) -> bool:
    if not shape:
        return True
    if known is None or known.shape is None or len(shape) > len(known.shape):
        return False
    tail = known.shape[len(known.shape) - len(shape) :]
    return all(own in (1, size) for own, size in zip(shape, tail, strict=True))
