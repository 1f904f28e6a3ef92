"""How far a covariance is damped, by the number of rows that show it."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from onnxslim_tk.kernels.least_squares import shrinkage

Floats = NDArray[np.float64]
LEAST: Final = 0.01
# Rows of one sample resemble each other: they count for a third of independent ones.
_ALIKE: Final = 3.0
_GROUPS: Final = 16


def damping_for(second: Floats, count: int, alike: float = _ALIKE) -> float:
    """The damping for second moments ``(groups, inputs, inputs)`` of ``count`` rows.

    ``alike`` is how many rows count for one independent one.
    """
    some = second[:: max(1, len(second) // _GROUPS)]
    return max(LEAST, alike * float(np.mean([shrinkage(c, count) for c in some])))
