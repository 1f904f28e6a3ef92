"""Quantized operators: codes are carried as floats, so that a gradient passes through rounding.

Inside the range of codes the gradient is that of no rounding; outside it is zero.
"""

from collections.abc import Callable

import torch
from onnx import TensorProto

from onnxslim_tk.train.operators.convolution import convolve
from onnxslim_tk.train.rounding import rounded
from onnxslim_tk.train.rules import Node, Rules, Tensor, along, axis_of

QUANTIZED = Rules()
CODES: dict[int, tuple[int, int]] = {
    TensorProto.INT8: (-128, 127),
    TensorProto.UINT8: (0, 255),
    TensorProto.INT16: (-32768, 32767),
    TensorProto.UINT16: (0, 65535),
    TensorProto.INT32: (-(2**31), 2**31 - 1),
    **{
        TensorProto.DataType.Value(name): ends
        for name, ends in {
            "INT4": (-8, 7),
            "UINT4": (0, 15),
            "INT2": (-2, 1),
            "UINT2": (0, 3),
        }.items()
        if name in dict(TensorProto.DataType.items())
    },
}
"""The smallest and the largest code of an element type."""

_BY_DTYPE: dict[torch.dtype, int] = {
    torch.int8: TensorProto.INT8,
    torch.uint8: TensorProto.UINT8,
    torch.int16: TensorProto.INT16,
    torch.int32: TensorProto.INT32,
}


def _range(node: Node, zero: Tensor | None, slot: int) -> tuple[int, int]:
    known = node.types[slot] if slot < len(node.types) else 0
    if zero is None:
        element = node.get("output_dtype", 0) or TensorProto.UINT8
    else:
        element = known or _BY_DTYPE.get(zero.dtype, 0)
    if element not in CODES:
        raise node.refuse(f"element type {element}")
    return CODES[element]


def _laid(node: Node, values: Tensor, x: Tensor) -> Tensor:
    """A scale or zero point as it lies along ``x``."""
    block = int(node.get("block_size", 0))
    axis = axis_of(int(node.get("axis", 1)), max(x.dim(), 1))
    if block:
        return values.repeat_interleave(block, axis).narrow(axis, 0, x.shape[axis])
    return along(values, x.dim(), axis)


def _quantized(x: Tensor, scale: Tensor, zero: Tensor, ends: tuple[int, int]) -> Tensor:
    return torch.clamp(rounded(x / scale) + zero, *ends)


@QUANTIZED.operator("QuantizeLinear", "com.microsoft:QuantizeLinear")
def _quantize_linear(node: Node, x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    ends = _range(node, zero, 2)
    wide = x.to(scale.dtype)
    shift = torch.zeros((), dtype=scale.dtype) if zero is None else zero.to(scale.dtype)
    return _quantized(wide, _laid(node, scale, x), _laid(node, shift, x), ends)


@QUANTIZED.operator("DequantizeLinear", "com.microsoft:DequantizeLinear")
def _dequantize_linear(node: Node, x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    if zero is not None:
        x = x.to(torch.float64) if x.dtype in (torch.int32, torch.float64) else x.to(scale.dtype)
        x = x - _laid(node, zero, x).to(x.dtype)
    return x.to(scale.dtype) * _laid(node, scale, x)


@QUANTIZED.operator("DynamicQuantizeLinear")
def _dynamic_quantize_linear(node: Node, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    with torch.no_grad():
        low, high = x.min().clamp(max=0), x.max().clamp(min=0)
        scale = (high - low) / 255
        scale = torch.where(scale > 0, scale, torch.ones_like(scale))
        zero = torch.round((-low / scale).clamp(0, 255))
    return _quantized(x, scale, zero, (0, 255)), scale, zero.to(torch.uint8)


def _centred(x: Tensor, zero: Tensor | None, axis: int) -> Tensor:
    wide = x.to(torch.get_default_dtype()) if not x.is_floating_point() else x
    if zero is None:
        return wide
    return wide - along(zero.to(wide.dtype), x.dim(), axis)


@QUANTIZED.operator("MatMulInteger")
def _matmul_integer(
    node: Node, a: Tensor, b: Tensor, a_zero: Tensor | None = None, b_zero: Tensor | None = None
) -> Tensor:
    return torch.matmul(_centred(a, a_zero, -2), _centred(b, b_zero, -1))


@QUANTIZED.operator("ConvInteger")
def _conv_integer(
    node: Node, x: Tensor, w: Tensor, x_zero: Tensor | None = None, w_zero: Tensor | None = None
) -> Tensor:
    return convolve(node, _centred(x, x_zero, 0), _centred(w, w_zero, 0))


def _rescaled(
    node: Node, inputs: tuple[Tensor, ...], axis: int, product: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """``product`` of two dequantized tensors, quantized anew."""
    a, a_scale, a_zero, b, b_scale, b_zero, scale, zero = inputs
    left = _centred(a, a_zero, -2) * a_scale
    right = _centred(b, b_zero, axis) * along(b_scale, b.dim(), axis)
    ends = _range(node, zero, 7)
    return _quantized(product(left, right), scale, zero.to(scale.dtype), ends)


@QUANTIZED.operator("QLinearMatMul")
def _qlinear_matmul(node: Node, *inputs: Tensor) -> Tensor:
    return _rescaled(node, inputs, -1, torch.matmul)


@QUANTIZED.operator("QLinearConv")
def _qlinear_conv(node: Node, *inputs: Tensor) -> Tensor:
    *quantized, bias = inputs if len(inputs) == 9 else (*inputs, None)
    x_scale, w_scale = quantized[1], quantized[4]
    real = None if bias is None else bias.to(x_scale.dtype) * (x_scale * w_scale)
    return _rescaled(node, tuple(quantized), 0, lambda x, w: convolve(node, x, w, real))
