"""Which tensors of a file are trained: those in weight slots, whatever they pass on the way."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from onnxslim_tk.train.operators.quantized import CODES
from onnxslim_tk.train.program import Constant, Program, Step
from onnxslim_tk.train.units import MOVES, laid_along, later_scale, scale_of, values_of

Array = NDArray[Any]

FLOATS: Final = (
    TensorProto.FLOAT,
    TensorProto.DOUBLE,
    TensorProto.FLOAT16,
    TensorProto.BFLOAT16,
)
MATRICES: Final[dict[str, tuple[int, ...]]] = {
    "Conv": (1,),
    "ConvTranspose": (1,),
    "Gemm": (0, 1),
    "MatMul": (0, 1),
    "com.microsoft:FusedMatMul": (0, 1),
    "Einsum": (0, 1),
    "Gather": (0,),
    "LSTM": (1, 2),
    "GRU": (1, 2),
    "RNN": (1, 2),
    "MatMulInteger": (1,),
    "ConvInteger": (1,),
    "QLinearConv": (3,),
    "QLinearMatMul": (3,),
}
"""Inputs of operators that are weight matrices."""
_VECTORS: Final[dict[str, tuple[int, ...]]] = {
    "Conv": (2,),
    "ConvTranspose": (2,),
    "Gemm": (2,),
    "LSTM": (3, 7),
    "GRU": (3,),
    "RNN": (3,),
    "BatchNormalization": (1, 2),
    "InstanceNormalization": (1, 2),
    "LayerNormalization": (1, 2),
    "GroupNormalization": (1, 2),
    "RMSNormalization": (1,),
    "SimplifiedLayerNormalization": (1,),
    "com.microsoft:SkipLayerNormalization": (2, 3, 4),
    "com.microsoft:BiasGelu": (1,),
    "com.microsoft:FastGelu": (1,),
    "PRelu": (1,),
}
_ARITHMETIC: Final = ("Add", "Sub", "Mul", "Div")
_JOINS: Final = ("Concat",)
_INTEGER: Final = ("MatMulInteger", "ConvInteger", "QLinearConv", "QLinearMatMul")
_QUANTIZING: Final = ("QuantizeLinear", "DequantizeLinear")
_FIXED: Final[dict[str, tuple[int, ...]]] = {
    "BatchNormalization": (3, 4),
    "Resize": (1, 2),
    "Upsample": (1,),
    "Clip": (1, 2),
    "Pad": (2,),
    "Range": (0, 1, 2),
    "QuantizeLinear": (1,),
    "DequantizeLinear": (1,),
}
"""Inputs that must stay as they are, whoever else reads the tensor."""
_LARGEST: Final = 1e4
"""What no weight reaches: larger numbers are masks, which stand for minus infinity."""
_SMALLEST_JOINED: Final = 16


@dataclass(frozen=True, slots=True)
class Role:
    """What a trained tensor is: a matrix or not; of integers, their unit and zero point.

    These are laid out along the tensor, or single numbers. ``scale`` is the key of the tensor that
    the unit comes from, empty where there is none; ``is_scale`` tells such a tensor, ``factors``
    are the keys of scales that it is the product of.
    """

    is_matrix: bool
    unit: Array | None = None
    zero: Array | None = None
    scale: str = ""
    is_scale: bool = False
    factors: tuple[str, ...] = ()


def trained(program: Program, scales: bool = False) -> dict[str, Role]:
    """The tensors that are trained, by key; with ``scales`` those of quantized numbers too.

    Floats count where they are weights, biases, or gains, and where arithmetic lays more than one
    of them along the data; integers where a scale turns them into weights. Statistics of
    BatchNormalization, bounds, scales of Resize, single numbers and masks never count.
    """
    roles: dict[str, Role] = {}
    for key, constant in program.constants.items():
        # What a run may override is no weight.
        role = None if key in program.inputs else _role(program, key, constant)
        if role is None and scales and _is_scale(program, key, constant):
            role = Role(False, is_scale=True)
        if role is not None:
            roles[key] = role
    named = dict.fromkeys(role.scale for role in roles.values() if role.scale)
    for key in named if scales else ():
        if _is_positive(program.constants[key]):
            roles[key] = Role(False, is_scale=True)
    for key, products in _bias_scales(program).items():
        roles.pop(key, None)
        if len(products) > 1:
            # One number can't be two products.
            for factor in {name for factors in products for name in factors}:
                roles.pop(factor, None)
            continue
        learnt = tuple(factor for factor in next(iter(products)) if factor in roles)
        if learnt:
            roles[key] = Role(False, is_scale=True, factors=learnt)
    for key in roles:
        # Small numbers that codes are multiplied by: a step must mean the same as elsewhere.
        if _multiplies_codes(program, key) and _is_positive(program.constants[key]):
            roles[key] = Role(False, is_scale=True)
    return roles


def _bias_scales(program: Program) -> dict[str, set[tuple[str, str]]]:
    """Constant scales of biases by key, each with those of the data and of the weight.

    It is their product, and has to stay so: a runtime that works in integers takes it for granted.
    """
    found: dict[str, set[tuple[str, str]]] = {}
    for step in {id(step): step for step in program.makers.values()}.values():
        made = [program.makers.get(key) for key in step.keys[:3]]
        scales = [
            maker.keys[1]
            for maker in made
            if maker is not None and maker.node.kind == "DequantizeLinear"
        ]
        if len(scales) == 3 and scales[2] in program.constants:
            found.setdefault(scales[2], set()).add((scales[0], scales[1]))
    return found


def _multiplies_codes(program: Program, key: str) -> bool:
    """Whether a float constant is read as a factor of integers alone, or looked up as one."""
    if program.constants[key].element not in FLOATS:
        return False
    readings = list(_readings(program, key, frozenset((*MOVES, "Gather"))))
    return bool(readings) and all(
        step.node.kind == "Mul" and _holds_codes(program, step.keys[1 - slot])
        for step, slot in readings
    )


def _holds_codes(program: Program, key: str) -> bool:
    """Whether a tensor is made of integers by what only moves them or turns them into floats."""
    while key not in program.constants:
        step = program.makers.get(key)
        if step is None:
            return False
        if step.node.kind in (*_INTEGER[:2], "DynamicQuantizeLinear"):
            return True
        if step.node.kind not in (*MOVES, "Gather"):
            return False
        key = step.keys[0]
    return program.constants[key].element in CODES


def _is_scale(program: Program, key: str, constant: Constant) -> bool:
    """Whether a constant is nothing but scales of quantized numbers."""
    readings = program.readers.get(key, ())
    scaling = [step.node.kind in _QUANTIZING and slot == 1 for step, slot in readings]
    if key in program.inputs or not any(scaling) or constant.element not in FLOATS:
        return False
    # Scales of biases are products of others.
    others = [step.node.kind == "Mul" for step, _ in readings]
    return all(map(any, zip(scaling, others, strict=True))) and _is_positive(constant)


def _is_positive(constant: Constant) -> bool:
    return bool((constant.values.astype(np.float64) > 0).all())


def _role(program: Program, key: str, constant: Constant) -> Role | None:
    if not constant.values.size:
        return None
    readings = list(_readings(program, key))
    if any(slot in _FIXED.get(step.node.kind, ()) for step, slot in readings):
        return None
    is_matrix = any(slot in MATRICES.get(step.node.kind, ()) for step, slot in readings)
    if constant.element in FLOATS:
        is_vector = any(slot in _VECTORS.get(step.node.kind, ()) for step, slot in readings)
        laid = any(_is_laid(step, constant) for step, _ in readings)
        if not (is_matrix or is_vector or laid):
            return None
        return Role(is_matrix and constant.values.ndim > 1)
    if constant.element not in CODES or not readings:
        return None
    return _coded(program, key, constant, is_matrix)


def _is_laid(step: Step, constant: Constant) -> bool:
    """Whether arithmetic lays a float constant along the data as only a weight lies."""
    values = constant.values
    least = _SMALLEST_JOINED if step.node.kind in _JOINS else 2
    if step.node.kind not in (*_ARITHMETIC, *_JOINS) or values.size < least:
        return False
    wide = values.astype(np.float64)
    return bool(np.isfinite(wide).all() and (np.abs(wide) < _LARGEST).all())


def _readings(
    program: Program, key: str, through: frozenset[str] = MOVES
) -> Iterator[tuple[Step, int]]:
    """The inputs that a tensor ends in, through what only moves or decodes it."""
    waiting, seen = [key], {key}
    while waiting:
        for step, slot in program.readers.get(waiting.pop(), ()):
            kind = step.node.kind
            moves = kind in through or (kind == "DequantizeLinear" and slot == 0)
            if not moves or slot != 0:
                yield step, slot
                continue
            if step.node.key not in seen:
                seen.add(step.node.key)
                waiting.append(step.node.key)


def _coded(program: Program, key: str, constant: Constant, is_matrix: bool) -> Role | None:
    """The role of integers; None where nothing says that they are weights."""
    shape = constant.values.shape
    for step, slot in program.readers.get(key, ()):
        if step.node.kind == "DequantizeLinear" and slot == 0:
            scale, zero = scale_of(program, step), values_of(program, step, 2)
            if scale is None:
                return None
            laid = [None if v is None else laid_along(step, v, shape) for v in (scale, zero)]
            source = step.keys[1] if step.keys[1] in program.constants else ""
            return Role(is_matrix and len(shape) > 1, laid[0], laid[1], source)
    scale, source = later_scale(program, key)
    if scale is None:
        # The scale comes later or nowhere; weights as large as those that training begins with.
        direct = any(step.node.kind in _INTEGER for step, _ in program.readers.get(key, ()))
        if not direct or not is_matrix:
            return None
        spread = float(np.sqrt((constant.values.astype(np.float64) ** 2).mean())) or 1.0
        inputs = constant.values.size / max(shape[-1 if constant.values.ndim == 2 else 0], 1)
        return Role(True, np.full(1, 1 / spread / np.sqrt(inputs)))
    try:
        if np.broadcast_shapes(scale.shape, shape) == shape:
            return Role(len(shape) > 1, scale, scale=source)
    except ValueError:
        pass
    return Role(len(shape) > 1, np.sqrt((scale.astype(np.float64) ** 2).mean()).reshape(1))
