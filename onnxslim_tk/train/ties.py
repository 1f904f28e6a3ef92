"""Tensors that are one: exporters write a tied weight once for each of its readers."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from onnxslim_tk.train.program import Constant
from onnxslim_tk.train.rules import Tensor

_DISTINCT: Final = 16
"""Distinct values from which on two tensors aren't equal by chance, as zeros and ones are."""


@dataclass(frozen=True, slots=True)
class Tie:
    """Where a tensor's values are: the number of its weight, its own shape, whether it is turned.

    ``shape`` is None for the weight's own shape.
    """

    weight: int
    shape: tuple[int, ...] | None = None
    turned: bool = False

    def view(self, dense: Tensor) -> Tensor:
        """The tensor, of the weight's values."""
        if self.turned:
            return dense.t()
        return dense if self.shape is None else dense.reshape(self.shape)


def tied(constants: Mapping[str, Constant], holders: Mapping[str, int]) -> dict[str, Tie]:
    """Number the weights behind ``constants``; equal ones, reshaped or transposed, get one.

    So do those of one holder: bodies that read a weight of the same outer body share it.
    """
    found: dict[str, Tie] = {}
    held: dict[int, Tie] = {}
    known: dict[tuple[int, bytes], tuple[int, tuple[int, ...]]] = {}
    count = 0
    for key, constant in constants.items():
        owner = holders.get(key)
        if owner in held:
            found[key] = held[owner]
            continue
        values = constant.values
        shape = tuple(values.shape)
        mark = (constant.element, _digest(values))
        turned = (constant.element, _digest(values.T)) if values.ndim == 2 else mark
        if mark in known:
            number, first = known[mark]
            found[key] = Tie(number, None if shape == first else shape)
        elif turned in known and known[turned][1] == shape[::-1]:
            found[key] = Tie(known[turned][0], turned=True)
        else:
            found[key] = Tie(count)
            if len(np.unique(values.reshape(-1)[: 1 << 12])) >= _DISTINCT:
                known[mark] = count, shape
            count += 1
        if owner is not None:
            held[owner] = found[key]
    return found


def _digest(values: NDArray[Any]) -> bytes:
    return hashlib.sha256(np.ascontiguousarray(values).view(np.uint8).tobytes()).digest()
