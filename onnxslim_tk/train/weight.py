"""A tensor of the file as a parameter, in the form that it is stored in."""

from math import inf, log2
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import TensorProto
from torch import nn

from onnxslim_tk.kernels.codebook import TOP
from onnxslim_tk.packing.inspect import Alphabet, inspect
from onnxslim_tk.train.operators.elementwise import NARROW_TYPES
from onnxslim_tk.train.operators.quantized import CODES
from onnxslim_tk.train.program import Constant
from onnxslim_tk.train.rounding import narrowed, rounded
from onnxslim_tk.train.rules import Tensor
from onnxslim_tk.train.scale import Scale

Array = NDArray[Any]

_MOST_ENTRIES: Final = 256
_MOST_INTEGERS: Final = 64
_WIDTHS: Final = (8, 4, 2)
_USES: Final = 4
"""How often an entry of a codebook must be used on average: by chance, no value comes twice."""
_FEWER: Final = 0.8
"""Share of the bits of single values that codes of rows must keep to."""
_ROWS: Final = 1 << 16
"""Rows that are held against a codebook at once."""
_PRUNED: Final = 0.5
"""Share of zeros from which on codes of zero are pruned weights and not just small ones."""


class Weight(nn.Module):
    """A trained tensor: ``value`` is the parameter, :meth:`dense` what the graph reads.

    A tensor of few values is a codebook: ``value`` holds its entries, and codes stay. Zeros of a
    matrix stay zero. Integers are the rounded codes of ``value`` in units of their scale, so that
    a step of the optimizer means the same as elsewhere; 16-bit floats are rounded from 32 bits.
    """

    def __init__(
        self,
        constant: Constant,
        is_matrix: bool,
        unit: Array | None = None,
        zero: Array | None = None,
    ) -> None:
        super().__init__()
        stored = constant.values
        self.shape = tuple(stored.shape)
        self.dtype = stored.dtype
        self.narrow = NARROW_TYPES.get(constant.element)
        self.ends: tuple[int, int] | None = None if unit is None else CODES[constant.element]
        book = _codebook(stored, unit is not None) if is_matrix else None
        real = _wide(stored, constant.element)
        if unit is not None:
            real, unit, zero = self._real(stored, real, unit, zero, book)
        mask = _mask(real, unit is not None or book is not None) if is_matrix else None
        self.register_buffer("codes", None)
        if book is not None:
            codes = book.codes().astype(np.int64)
            entries = real.reshape(len(codes), -1)[_first_places(codes, len(book.entries))]
            self.codes = torch.from_numpy(codes)
            real = entries
        self.value = nn.Parameter(torch.from_numpy(np.array(real)))
        self.register_buffer("mask", None if mask is None else torch.from_numpy(mask))
        for name, array in (("unit", unit), ("zero", zero)):
            self.register_buffer(
                name, None if array is None else torch.from_numpy(np.asarray(array, real.dtype))
            )
        self._scale: tuple[Scale, ...] = ()
        self.shadow: nn.Parameter | None = None
        plain = unit is None and self.narrow is None
        self.is_plain = plain and mask is None and book is None

    def _real(
        self, stored: Array, wide: Array, unit: Array, zero: Array | None, book: Alphabet | None
    ) -> tuple[Array, Array, Array]:
        """Integers in units of their scale."""
        shift = np.zeros(1) if zero is None else np.asarray(zero, np.float64)
        if stored.dtype == np.int8 and np.abs(wide).max(initial=0) <= TOP:
            # What no processor's sums overflow stays so.
            self.ends = (-TOP, TOP)
        unit = np.asarray(unit, np.float64)
        if book is not None:
            # Entries belong to all channels, so they have one unit and one zero.
            unit, shift = np.sqrt((unit**2).mean()).reshape(1), shift.mean().round().reshape(1)
        else:
            few = np.unique(stored)
            narrow = 1 < len(few) <= min(_MOST_INTEGERS, stored.size // _USES)
            # A narrow grid in a wide type: what it was rounded to is what it stays on.
            self.ends = (int(few[0]), int(few[-1])) if narrow else self.ends
        real = (wide.astype(np.float64) - shift) * unit
        return real.astype(wide.dtype), unit, shift

    def follow(self, scale: Scale) -> None:
        """Round integers in units of ``scale`` as it is learnt."""
        if self.unit is not None and self.unit.numel() == scale.base.numel():
            # In a tuple: it is a module of its own, and no part of this one.
            self._scale = (scale,)

    def loosen(self) -> None:
        """Let codes change: a ``shadow`` of single values learns beside the codebook."""
        if self.codes is not None and self.shadow is None:
            self.shadow = nn.Parameter(self._looked_up().detach().clone())

    def reassign(self) -> int:
        """Give each place the entry that is nearest to its shadow; how many changed."""
        if self.codes is None or self.shadow is None:
            return 0
        with torch.no_grad():
            entries = self.value.reshape(len(self.value), -1)
            rows = self.shadow.reshape(-1, entries.shape[1])
            nearest = torch.cat([torch.cdist(r, entries).argmin(1) for r in rows.split(_ROWS)])
            changed = int((nearest != self.codes).sum())
            self.codes.copy_(nearest)
        return changed

    def _looked_up(self) -> Tensor:
        return self.value.index_select(0, self.codes).reshape(self.shape)

    def dense(self) -> Tensor:
        """The tensor as the graph reads it; integers as floats, so that a gradient passes."""
        value = self.value
        if self.is_plain:
            return value
        if self.codes is not None:
            value = self._looked_up()
            if self.shadow is not None:
                value = value + (self.shadow - self.shadow.detach())
        if self.mask is not None:
            value = value * self.mask
        if self.ends is not None:
            unit = self.unit
            if self._scale:
                unit = unit * self._scale[0].ratio().reshape(unit.shape)
            return torch.clamp(rounded(value / unit) + self.zero, *self.ends)
        return value if self.narrow is None else narrowed(value, self.narrow)

    def stored(self) -> Array:
        """The values as the file holds them."""
        with torch.no_grad():
            found: Array = self.dense().detach().cpu().numpy()
        return np.ascontiguousarray(found.reshape(self.shape)).astype(self.dtype)


def _wide(stored: Array, element: int) -> Array:
    """Values in the type they are trained in."""
    # 32 bits of an integer don't fit into a float's 24.
    double = element in (TensorProto.DOUBLE, TensorProto.INT32)
    return stored.astype(np.float64 if double else np.float32)


def _codebook(stored: Array, is_integer: bool) -> Alphabet | None:
    """The few values, or the few rows, that a weight consists of; None for many."""
    if not stored.size or stored.dtype.itemsize not in (1, 2, 4, 8):
        return None
    facts = inspect(np.ascontiguousarray(stored))
    single = facts.alphabet
    count = len(single.entries) if single is not None else inf
    for width in _WIDTHS:
        rows = facts.rows(width, lambda found, size: found <= _MOST_ENTRIES)
        if rows is None or len(rows.entries) < 2 or _USES * len(rows.entries) > rows.size:
            continue
        # Single values in any order make up rows too, but as many bits of them.
        if log2(len(rows.entries)) < _FEWER * width * log2(count):
            return rows
    most = _MOST_INTEGERS if is_integer else _MOST_ENTRIES
    if single is None or not 1 < count <= most or count * _USES > single.size:
        return None
    values = np.sort(single.entries.reshape(-1).astype(np.float64))
    # Whole numbers without a gap are a grid that one rounds to.
    return None if is_integer and bool((np.diff(values) == 1).all()) else single


def _first_places(codes: Array, count: int) -> Array:
    places = np.zeros(count, np.int64)
    places[codes[::-1]] = np.arange(len(codes) - 1, -1, -1)
    return places


def _mask(real: Array, is_coded: bool) -> Array | None:
    """Where a weight isn't zero, if its zeros are meant."""
    kept = real != 0
    zeros = 1 - kept.mean() if kept.size else 0.0
    if zeros == 1 or zeros == 0 or (is_coded and zeros < _PRUNED):
        return None
    return kept.astype(real.dtype)
