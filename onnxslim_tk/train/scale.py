"""Scales of quantized numbers as parameters: learned step sizes."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from onnxslim_tk.train.rules import Tensor


class Scale(nn.Module):
    """The scale of a QuantizeLinear or DequantizeLinear, above 0 whatever is learnt.

    ``value`` is the logarithm of what it is times the scale it began as, so that a step of the
    optimizer means the same for scales of any size. The gradient reaches it through the numbers and
    through their rounding alike (Esser et al., 2020).
    """

    codes = mask = ends = shadow = None

    def __init__(self, stored: NDArray[Any]) -> None:
        super().__init__()
        self.shape, self.dtype = tuple(stored.shape), stored.dtype
        wide = np.float64 if stored.dtype == np.float64 else np.float32
        base = torch.from_numpy(np.array(stored, wide))
        self.register_buffer("base", base)
        self.value = nn.Parameter(torch.zeros_like(base))

    def ratio(self) -> Tensor:
        """What the scale is in shares of what it was."""
        return self.value.exp()

    def dense(self) -> Tensor:
        """The scale as the graph reads it."""
        return self.base * self.ratio()

    def stored(self) -> NDArray[Any]:
        """The scale as the file holds it."""
        with torch.no_grad():
            found: NDArray[Any] = self.dense().numpy()
        return found.astype(self.dtype).reshape(self.shape)
