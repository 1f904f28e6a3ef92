"""Rounding whose gradient is that of no rounding at all: the straight-through estimator."""

from typing import Any

import torch

from onnxslim_tk.train.rules import Tensor


class _Rounded(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: Tensor) -> Tensor:
        return torch.round(x)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        return gradient


class _Narrowed(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: Tensor, dtype: torch.dtype) -> Tensor:
        return x.to(dtype).to(x.dtype)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


def rounded(x: Tensor) -> Tensor:
    """``x`` at whole numbers, halves to even; the gradient passes (Bengio et al., 2013)."""
    return _Rounded.apply(x)


def narrowed(x: Tensor, dtype: torch.dtype) -> Tensor:
    """``x`` with no more precision than ``dtype`` has, in its own type; the gradient passes."""
    return _Narrowed.apply(x, dtype)
