"""Weights to begin with: drawn anew, for a student that keeps nothing of its teacher."""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from onnxslim_tk.graph.model import Model
from onnxslim_tk.train.holders import holders
from onnxslim_tk.train.module import GraphModule
from onnxslim_tk.train.program import Program

Array = NDArray[Any]

_GAINS: Final = {
    "BatchNormalization": 1,
    "InstanceNormalization": 1,
    "LayerNormalization": 1,
    "GroupNormalization": 1,
    "RMSNormalization": 1,
    "SimplifiedLayerNormalization": 1,
}
"""Inputs of normalizations that multiply."""
_PRODUCTS: Final = ("MatMul", "com.microsoft:FusedMatMul")
_RECURRENT: Final = ("LSTM", "GRU", "RNN")


def draw_anew(model: Model, seed: int) -> int:
    """Draw the trained tensors of ``model`` anew, in place; give how many there are.

    Matrices are normal with the variance that keeps that of the data (He et al., 2015), biases
    zero, normalizations do nothing at first. A table that is looked up, and what arithmetic lays
    along the data, keep their size.
    """
    module = GraphModule(model)
    program = module.program
    rng = np.random.default_rng(seed)
    values = {key: _drawn(program, key, program.constants[key].values, rng) for key in module.ties}
    # Tensors that are one stay one.
    first = {tie.weight: key for key, tie in reversed(module.ties.items())}
    for key, tie in module.ties.items():
        source = values[first[tie.weight]]
        shape = program.constants[key].values.shape
        values[key] = source.T if tie.turned else source.reshape(shape)
    values |= dict(_statistics(program))
    for key, holder in holders(model, values):
        held = np.asarray(holder.values)
        holder.values = np.ascontiguousarray(values[key].reshape(held.shape).astype(held.dtype))
    return len(values)


def _drawn(program: Program, key: str, old: Array, rng: np.random.Generator) -> Array:
    wide = old.astype(np.float64)
    size = float(np.sqrt((wide**2).mean()))
    for step, slot in program.readers.get(key, ()):
        kind, node = step.node.kind, step.node
        if kind in ("Cast", "Identity"):
            return _drawn(program, node.key, old, rng)
        if kind == "Transpose":
            order = node.get("perm", list(range(old.ndim))[::-1])
            drawn = _drawn(program, node.key, old.transpose(order), rng)
            return drawn.transpose(np.argsort(order))
        if kind in _GAINS:
            return np.ones(old.shape) if slot == _GAINS[kind] else np.zeros(old.shape)
        if slot == 2 and kind in ("Conv", "ConvTranspose", "Gemm"):
            return np.zeros(old.shape)
        if kind in _RECURRENT:
            return np.zeros(old.shape) if slot == 3 else _normal(rng, old, old.shape[-1], 1.0)
        if slot == 1 and kind == "Conv":
            return _normal(rng, old, old[0].size, 2.0)
        if slot == 1 and kind == "ConvTranspose":
            return _normal(rng, old, old.shape[0], 2.0)
        if kind == "Gemm":
            inputs = old.shape[1 if node.get("transB" if slot else "transA", 0) else 0]
            return _normal(rng, old, inputs, 2.0)
        if kind in _PRODUCTS and old.ndim > 1:
            turned = bool(node.get("transB" if slot else "transA", 0))
            return _normal(rng, old, old.shape[-2 if bool(slot) != turned else -1], 2.0)
        if kind == "Gather":
            return size * rng.standard_normal(old.shape)
    # A shift that arithmetic lays along the data; what multiplies keeps its size.
    kinds = {step.node.kind for step, _ in program.readers.get(key, ())}
    if kinds <= {"Add", "Sub"}:
        return np.zeros(old.shape)
    return np.full(old.shape, size) if kinds <= {"Mul", "Div"} else wide


def _normal(rng: np.random.Generator, like: Array, inputs: int, gain: float) -> Array:
    return rng.standard_normal(like.shape) * np.sqrt(gain / max(inputs, 1))


def _statistics(program: Program) -> list[tuple[str, Array]]:
    """Means of 0 and variances of 1 for every BatchNormalization."""
    found = []
    for key, constant in program.constants.items():
        for step, slot in program.readers.get(key, ()):
            if step.node.kind == "BatchNormalization" and slot in (3, 4):
                found.append((key, np.full(constant.values.shape, float(slot == 4))))
    return found
