"""Grids of uint8 codes: where a value lies on one, and how a grid is fitted to what it absorbs."""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from onnxslim_tk.graph.activations import Absorbed
from onnxslim_tk.graph.regions import Grid

Array = NDArray[Any]
LEVELS: Final = 255
# Half a step off is half of what rounding does anyway; from this many steps on, a slightly wider
# grid avoids even that.
_FEW_STEPS: Final = 16


@dataclass(frozen=True, slots=True)
class Affine:
    """A uint8 grid: value = scale * (code - zero_point)."""

    scale: np.float32
    zero_point: int


@dataclass(frozen=True, slots=True)
class Written:
    """The grid that an operator writes on, and what is to be added before for codes to fit.

    ``over`` reads what was written where floors of channels are to be added to it yet.
    """

    affine: Affine
    over: Affine
    shift: float | Array


def on_grid(values: Array, affine: Affine) -> Array:
    """The codes nearest to ``values``, uint8."""
    steps = np.rint(values.astype(np.float64) / float(affine.scale)) + affine.zero_point
    codes: Array = np.clip(steps, 0, LEVELS).astype(np.uint8)
    return codes


def fitted(grid: Grid, affine: Affine) -> Affine:
    """``affine``, made a little wider where the ends that ``grid`` stands for have to be codes.

    A low end below zero falls on code 0; the value that the operator's own zero is moved to lies
    on the grid, on a code where that costs little.
    """
    scale, zero = float(affine.scale), affine.zero_point
    low, shift = grid.floor, grid.absorbed.shift
    if low is not None and low < 0:
        zero = min(max(int(-low / scale), 1), LEVELS)
        return Affine(np.float32(-low / zero), zero)
    if low is not None:
        zero = 0
    if shift > 0:
        scale = max(scale, shift / (LEVELS - zero) if zero < LEVELS else scale)
    elif shift < 0 and -shift > scale * zero:
        top = scale * (LEVELS - zero)
        scale = (top - shift) / LEVELS
        zero = min(max(round(-shift / scale), 0), LEVELS)
    steps = int(abs(shift) / scale)
    if steps >= _FEW_STEPS and not grid.has_bias:
        scale = abs(shift) / steps
    return Affine(np.float32(scale), zero)


def written_as(grid: Grid, affine: Affine) -> Written:
    """How an operator writes what is read on ``affine`` after all that the grid absorbs."""
    absorbed = grid.absorbed
    if absorbed.least is not None:
        return _over_floors(absorbed, absorbed.least, affine)
    if absorbed.factor == 1.0 and absorbed.shift == 0.0:
        return Written(affine, affine, 0.0)
    scale = float(affine.scale) / absorbed.factor
    place = affine.zero_point + absorbed.shift / float(affine.scale)
    zero = min(max(round(place), 0), LEVELS)
    return Written(Affine(np.float32(scale), zero), affine, (place - zero) * scale)


def _over_floors(absorbed: Absorbed, least: Array, affine: Affine) -> Written:
    """``max(x, least)`` is ``max(x - least, 0) + least``, and saturation at code 0 is that Max."""
    top = float(affine.scale) * (LEVELS - affine.zero_point) - float(least.min())
    scale = max(top, float(affine.scale)) / LEVELS
    shift = (absorbed.shift - least.astype(np.float64).reshape(-1)) / absorbed.factor
    written = Affine(np.float32(scale / absorbed.factor), 0)
    return Written(written, Affine(np.float32(scale), 0), shift)
