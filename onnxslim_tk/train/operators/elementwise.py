"""Operators on single elements: arithmetic, activations, comparisons, casts."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812
from onnx import TensorProto

from onnxslim_tk.train.rounding import narrowed
from onnxslim_tk.train.rules import Node, Rules, Tensor

ELEMENTWISE = Rules()
ELEMENTWISE.same(
    Abs=torch.abs,
    Acos=torch.acos,
    Acosh=torch.acosh,
    Add=torch.add,
    And=torch.logical_and,
    Asin=torch.asin,
    Asinh=torch.asinh,
    Atan=torch.atan,
    Atanh=torch.atanh,
    Ceil=torch.ceil,
    Cos=torch.cos,
    Cosh=torch.cosh,
    Equal=torch.eq,
    Erf=torch.erf,
    Exp=torch.exp,
    Floor=torch.floor,
    Greater=torch.gt,
    GreaterOrEqual=torch.ge,
    HardSwish=F.hardswish,
    Identity=lambda x: x,
    IsNaN=torch.isnan,
    Less=torch.lt,
    LessOrEqual=torch.le,
    Log=torch.log,
    Mish=F.mish,
    Mul=torch.mul,
    Neg=torch.neg,
    Not=torch.logical_not,
    Or=torch.logical_or,
    Reciprocal=torch.reciprocal,
    Relu=torch.relu,
    Round=torch.round,
    Sigmoid=torch.sigmoid,
    Sign=torch.sign,
    Sin=torch.sin,
    Sinh=torch.sinh,
    Softsign=F.softsign,
    Sub=torch.sub,
    Tan=torch.tan,
    Tanh=torch.tanh,
    Where=torch.where,
    Xor=torch.logical_xor,
    BitwiseAnd=torch.bitwise_and,
    BitwiseNot=torch.bitwise_not,
    BitwiseOr=torch.bitwise_or,
    BitwiseXor=torch.bitwise_xor,
)

ELEMENT_TYPES: dict[int, torch.dtype] = {
    TensorProto.FLOAT: torch.float32,
    TensorProto.DOUBLE: torch.float64,
    TensorProto.INT8: torch.int8,
    TensorProto.INT16: torch.int16,
    TensorProto.INT32: torch.int32,
    TensorProto.INT64: torch.int64,
    TensorProto.UINT8: torch.uint8,
    TensorProto.UINT16: torch.uint16,
    TensorProto.UINT32: torch.uint32,
    TensorProto.UINT64: torch.uint64,
    TensorProto.BOOL: torch.bool,
}
NARROW_TYPES: dict[int, torch.dtype] = {
    TensorProto.FLOAT16: torch.float16,
    TensorProto.BFLOAT16: torch.bfloat16,
}
"""Calculated in float32, so that small gradients don't vanish."""

# What Selu takes where the file says nothing, in the precision of the file.
_SELU = (1.67326319217681884765625, 1.05070102214813232421875)


@ELEMENTWISE.operator("Div")
def _div(node: Node, x: Tensor, y: Tensor) -> Tensor:
    return x / y if x.is_floating_point() else torch.div(x, y, rounding_mode="trunc")


@ELEMENTWISE.operator("Sqrt")
def _sqrt(node: Node, x: Tensor) -> Tensor:
    return _root(x, torch.sqrt)


def _root(x: Tensor, root: Callable[[Tensor], Tensor]) -> Tensor:
    """A root whose slope at 0, which is infinite, is taken for 0.

    The spectrum of silence is 0, and so is much that has been rounded.
    """
    none = x == 0
    if not (x.requires_grad and bool(none.any())):
        return root(x)
    return torch.where(none, torch.zeros_like(x), root(torch.where(none, torch.ones_like(x), x)))


@ELEMENTWISE.operator("Pow")
def _pow(node: Node, x: Tensor, y: Tensor) -> Tensor:
    if y.is_floating_point() and not x.is_floating_point():
        return torch.pow(x.to(torch.float64), y).to(x.dtype)
    if y.numel() == 1 and not y.requires_grad:
        exponent = y.item()
        if 0 < exponent < 1:
            return _root(x, lambda base: torch.pow(base, exponent))
        # A power of a number by itself is exact, and far faster.
        square = exponent == 2 and y.dim() <= x.dim()
        return x * x if square else torch.pow(x, y.to(x.dtype)).to(x.dtype)
    return torch.pow(x, y).to(x.dtype)


@ELEMENTWISE.operator("Mod")
def _mod(node: Node, x: Tensor, y: Tensor) -> Tensor:
    return torch.fmod(x, y) if node.get("fmod", 0) else torch.remainder(x, y)


@ELEMENTWISE.operator("Max")
def _max(node: Node, first: Tensor, *others: Tensor) -> Tensor:
    for other in others:
        first = torch.maximum(first, other)
    return first


@ELEMENTWISE.operator("Min")
def _min(node: Node, first: Tensor, *others: Tensor) -> Tensor:
    for other in others:
        first = torch.minimum(first, other)
    return first


@ELEMENTWISE.operator("Sum")
def _sum(node: Node, first: Tensor, *others: Tensor) -> Tensor:
    for other in others:
        first = first + other
    return first


@ELEMENTWISE.operator("Mean")
def _mean(node: Node, *inputs: Tensor) -> Tensor:
    return _sum(node, *inputs) / len(inputs)


@ELEMENTWISE.operator("Clip")
def _clip(node: Node, x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    least = node.get("min") if low is None else low.item()
    most = node.get("max") if high is None else high.item()
    if least is None and most is None:
        return x
    # PyTorch's gradient passes at the ends, as it does for its own modules.
    return torch.clamp(x, least, most)


@ELEMENTWISE.operator("LeakyRelu")
def _leaky_relu(node: Node, x: Tensor) -> Tensor:
    return F.leaky_relu(x, node.get("alpha", 0.01))


@ELEMENTWISE.operator("PRelu")
def _prelu(node: Node, x: Tensor, slope: Tensor) -> Tensor:
    return torch.where(x >= 0, x, x * slope)


@ELEMENTWISE.operator("Elu")
def _elu(node: Node, x: Tensor) -> Tensor:
    return F.elu(x, node.get("alpha", 1.0))


@ELEMENTWISE.operator("Celu")
def _celu(node: Node, x: Tensor) -> Tensor:
    return F.celu(x, node.get("alpha", 1.0))


@ELEMENTWISE.operator("Selu")
def _selu(node: Node, x: Tensor) -> Tensor:
    alpha, gamma = node.get("alpha", _SELU[0]), node.get("gamma", _SELU[1])
    return gamma * F.elu(x, alpha)


@ELEMENTWISE.operator("ThresholdedRelu")
def _thresholded_relu(node: Node, x: Tensor) -> Tensor:
    return torch.where(x > node.get("alpha", 1.0), x, torch.zeros_like(x))


@ELEMENTWISE.operator("Shrink")
def _shrink(node: Node, x: Tensor) -> Tensor:
    bias, edge = node.get("bias", 0.0), node.get("lambd", 0.5)
    zero = torch.zeros_like(x)
    return torch.where(x < -edge, x + bias, torch.where(x > edge, x - bias, zero))


@ELEMENTWISE.operator("Softplus")
def _softplus(node: Node, x: Tensor) -> Tensor:
    return torch.logaddexp(x, torch.zeros((), dtype=x.dtype))


@ELEMENTWISE.operator("HardSigmoid")
def _hard_sigmoid(node: Node, x: Tensor) -> Tensor:
    return torch.clamp(x * node.get("alpha", 0.2) + node.get("beta", 0.5), 0, 1)


@ELEMENTWISE.operator("Swish", "com.microsoft:QuickGelu")
def _swish(node: Node, x: Tensor) -> Tensor:
    default = 1.0 if node.kind == "Swish" else 1.702
    return x * torch.sigmoid(x * node.get("alpha", default))


@ELEMENTWISE.operator("Gelu")
def _gelu(node: Node, x: Tensor) -> Tensor:
    return F.gelu(x, approximate=node.get("approximate", "none"))


@ELEMENTWISE.operator("com.microsoft:Gelu")
def _microsoft_gelu(node: Node, x: Tensor) -> Tensor:
    return F.gelu(x)


@ELEMENTWISE.operator("com.microsoft:BiasGelu")
def _bias_gelu(node: Node, x: Tensor, bias: Tensor) -> Tensor:
    return F.gelu(x + bias)


@ELEMENTWISE.operator("com.microsoft:FastGelu")
def _fast_gelu(node: Node, x: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.gelu(x if bias is None else x + bias, approximate="tanh")


@ELEMENTWISE.operator("ai.onnx.ml:Scaler")
def _scaler(node: Node, x: Tensor) -> Tensor:
    offset, scale = (
        torch.tensor(node.get(name, [default]), dtype=torch.float32)
        for name, default in (("offset", 0.0), ("scale", 1.0))
    )
    return (x.to(torch.float32) - offset) * scale


@ELEMENTWISE.operator("IsInf")
def _is_inf(node: Node, x: Tensor) -> Tensor:
    above, below = node.get("detect_positive", 1), node.get("detect_negative", 1)
    return ((x == math.inf) & bool(above)) | ((x == -math.inf) & bool(below))


@ELEMENTWISE.operator("Cast")
def _cast(node: Node, x: Tensor) -> Tensor:
    element = node.get("to")
    if element in NARROW_TYPES:
        wide = x.to(torch.float32)
        return narrowed(wide, NARROW_TYPES[element])
    if element not in ELEMENT_TYPES or not torch.is_tensor(x):
        raise node.refuse(f"element type {element}")
    return x.to(ELEMENT_TYPES[element])


@ELEMENTWISE.operator("CastLike")
def _cast_like(node: Node, x: Tensor, like: Tensor) -> Tensor:
    return x.to(like.dtype)


@ELEMENTWISE.operator("Dropout")
def _dropout(
    node: Node, x: Tensor, ratio: Tensor | None = None, training: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    # A file for inference drops nothing, and a student is trained as it will run.
    return x, torch.ones_like(x, dtype=torch.bool if node.opset >= 10 else x.dtype)


@ELEMENTWISE.operator("BitShift")
def _bit_shift(node: Node, x: Tensor, by: Tensor) -> Tensor:
    wide, shift = x.to(torch.int64), by.to(torch.int64)
    moved = wide << shift if node.get("direction") == "LEFT" else wide >> shift
    return moved.to(x.dtype)
