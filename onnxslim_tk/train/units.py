"""Units of integers: the scales and zero points that make weights of them."""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from onnxslim_tk.train.program import Program, Step

Array = NDArray[Any]

MOVES: Final = frozenset(
    ("Identity", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Cast", "Expand")
)
"""Operators that only move a tensor, or write it in another type."""


def later_scale(program: Program, key: str) -> tuple[Array | None, str]:
    """The constant that multiplies a tensor, or is its scale, behind Casts and a Gather.

    With the key of that constant, where nothing comes between.
    """
    waiting, seen = [key], {key}
    while waiting:
        for step, slot in program.readers.get(waiting.pop(), ()):
            kind = step.node.kind
            if kind == "Mul" or (kind == "DequantizeLinear" and slot == 0):
                source = step.keys[1 - slot]
                return _behind(program, step, 1 - slot), source * (source in program.constants)
            follows = kind in MOVES or kind == "Gather"
            if follows and slot == 0 and step.node.key not in seen:
                seen.add(step.node.key)
                waiting.append(step.node.key)
    return None, ""


def _behind(program: Program, step: Step, slot: int) -> Array | None:
    """A scale that is a constant, or one that is looked up row by row as its table is."""
    found = values_of(program, step, slot)
    while found is None:
        maker = program.makers.get(step.keys[slot])
        if maker is None or maker.node.kind not in (*MOVES, "Gather"):
            return None
        step, slot = maker, 0
        found = values_of(program, step, slot)
        if found is not None and step.node.kind == "Gather":
            return found.reshape(len(found), -1)
    return found


def scale_of(program: Program, step: Step) -> Array | None:
    """The scale of a DequantizeLinear: a constant, or the product of two, as biases have it."""
    maker = program.makers.get(step.keys[1])
    if maker is None or maker.node.kind != "Mul":
        return values_of(program, step, 1)
    factors = [values_of(program, maker, k) for k in (0, 1)]
    if factors[0] is None or factors[1] is None:
        return None
    product: Array = factors[0] * factors[1]
    return product


def values_of(program: Program, step: Step, slot: int) -> Array | None:
    """The values of a step's input where it is a constant."""
    found = program.constants.get(step.keys[slot]) if slot < len(step.keys) else None
    return None if found is None else found.values


def laid_along(step: Step, values: Array, shape: tuple[int, ...]) -> Array:
    """A scale or zero point of DequantizeLinear, laid along a tensor of ``shape``."""
    wide = values.astype(np.float64)
    if wide.size == 1 or not shape:
        return wide.reshape(-1)[:1]
    axis, block = int(step.node.get("axis", 1)) % len(shape), int(step.node.get("block_size", 0))
    if block:
        return np.repeat(wide, block, axis)[(slice(None),) * axis + (slice(shape[axis]),)]
    return wide.reshape([-1 if k == axis else 1 for k in range(len(shape))])
