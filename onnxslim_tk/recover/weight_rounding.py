"""Int8 weights whose rounding errors make up for each other in what their layer puts out."""

import numpy as np

from onnxslim_tk.graph.layers import Layer
from onnxslim_tk.graph.weight_grid import WeightGrid, WeightGrids
from onnxslim_tk.kernels.rounding import WEIGHT_BITS
from onnxslim_tk.measure.observe import Statistics
from onnxslim_tk.recover.bias import moments_of
from onnxslim_tk.recover.codebook import CodebookFit, whole_grid


def fed_back_grid(
    layer: Layer, statistics: Statistics | None, centred: bool, bits: int = WEIGHT_BITS
) -> WeightGrid | None:
    """The weight of ``layer`` in ``bits`` bits, rounded with error feedback.

    By GPTQ (Frantar et al., 2022). None where no covariance of its inputs is known, and where it is
    no float weight. With ``centred`` errors count about their mean, which a shift of the bias will
    take off.
    """
    moments = moments_of(layer, statistics) if layer.is_dense and not layer.is_half else None
    if moments is None or moments.second is None or not np.isfinite(moments.second).all():
        return None
    values, scales = CodebookFit(layer, moments, "normal", centred).round(whole_grid(bits))
    return WeightGrid(values.astype(np.int8), scales)


def rounded_grid(
    layer: Layer,
    statistics: Statistics | None,
    grids: WeightGrids,
    centred: bool = False,
    bits: int = WEIGHT_BITS,
) -> WeightGrid:
    """The weight of ``layer`` in ``bits`` bits, with error feedback if it can be, else nearest."""
    found = fed_back_grid(layer, statistics, centred, bits)
    return grids.of(layer, bits) if found is None else found
