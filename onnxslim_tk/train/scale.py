"""Scales of quantized numbers as parameters: learned step sizes."""

from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from onnxslim_tk.train.rounding import narrowed
from onnxslim_tk.train.rules import Tensor

_NARROW: Final = {"float16": torch.float16, "bfloat16": torch.bfloat16}


class Scale(nn.Module):
    """What codes are multiplied by, above 0 whatever is learnt.

    ``value`` is the logarithm of what it is times the scale it began as, so that a step of the
    optimizer means the same for scales of any size. The gradient reaches it through the numbers and
    through their rounding alike (Esser et al., 2020). The scale of a bias learns nothing itself: it
    follows those that it is the product of.
    """

    codes = mask = ends = shadow = None

    def __init__(self, stored: NDArray[Any]) -> None:
        super().__init__()
        self.shape, self.dtype = tuple(stored.shape), stored.dtype
        self._narrow = _NARROW.get(stored.dtype.name)
        wide = np.float64 if stored.dtype == np.float64 else np.float32
        base = torch.from_numpy(np.array(stored, wide))
        self.register_buffer("base", base)
        self.value = nn.Parameter(torch.zeros_like(base))

        self._factors: tuple[Scale, ...] = ()

    def follow(self, *factors: "Scale") -> None:
        """Be the product of other scales from now on."""
        self._factors = factors
        self.value.requires_grad_(False)

    def ratio(self) -> Tensor:
        """What the scale is in shares of what it was."""
        if not self._factors:
            return self.value.exp()
        product = self._factors[0].ratio()
        for factor in self._factors[1:]:
            product = product * factor.ratio()
        return product.expand(self.base.shape) if product.numel() == 1 else product

    def dense(self) -> Tensor:
        """The scale as the graph reads it."""
        found = self.base * self.ratio()
        return found if self._narrow is None else narrowed(found, self._narrow)

    def stored(self) -> NDArray[Any]:
        """The scale as the file holds it."""
        with torch.no_grad():
            found: NDArray[Any] = self.dense().numpy()
        return found.astype(self.dtype).reshape(self.shape)
