"""Padding: steps of sequences that a mask among the inputs says are none."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxslim_tk.graph.layers import Layer
from onnxslim_tk.measure.runtime import Feed

Array = NDArray[Any]
Steps = NDArray[np.bool_]


def real_steps(feed: Feed) -> Steps | None:
    """Which steps of a feed's sequences are no padding, ``(n, t)``; None where it doesn't say.

    The one input of zeros and ones with two axes whose name has "mask" in it says so.
    """
    masks = [
        np.asarray(value) != 0
        for name, value in feed.items()
        if "mask" in name.lower()
        and np.ndim(value) == 2
        and np.asarray(value).dtype.kind in "iub"
        and np.isin(value, (0, 1)).all()
    ]
    return masks[0] if len(masks) == 1 else None


def without_padding(values: Array, real: Steps | None) -> Array:
    """``(n, t, ...)`` or ``(n * t, ...)`` without the rows that are padding, as ``(k, ...)``.

    What has another form stays whole.
    """
    if real is None or real.all():
        return values
    if values.ndim == 3 and values.shape[:2] == real.shape:
        return np.asarray(values[real])
    if values.ndim == 2 and len(values) == real.size:
        return np.asarray(values[real.reshape(-1)])
    return values


def real_rows(layer: Layer, values: Array, real: Steps | None) -> Array:
    """What a layer reads, without padding where it is a matrix product, which keeps rows apart."""
    return without_padding(values, real) if layer.kind in ("MatMul", "Gemm") else values
