"""How far second moments are to be trusted, by the number of rows that show them."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from onnxslim_tk.kernels.least_squares import shrinkage

Floats = NDArray[np.float64]
_LEAST: Final = 0.01
# Rows of one sample resemble each other: they count for a third of independent ones.
_ALIKE: Final = 3.0
_GROUPS: Final = 16
ALIKE_IN_REFITS: Final = 30.0
"""The same where what stays makes up for what goes: that holds elsewhere only if many rows show it.

On photographs that it was not made with, efficientnet-lite0 agreed in 2 points more with zeros than
with 3, as for rounding, and missed a quarter less with channels gone than with 1.
"""


def damping_for(second: Floats, count: int, alike: float = _ALIKE) -> float:
    """The damping that second moments ``(groups, inputs, inputs)`` of ``count`` rows need.

    At least 0.01, in units of their mean diagonal. ``alike`` is how many rows count for one
    independent one (oracle approximating shrinkage; Chen, Wiesel, Eldar and Hero, 2010).
    """
    some = second[:: max(1, len(second) // _GROUPS)]
    return max(_LEAST, alike * float(np.mean([shrinkage(c, count) for c in some])))
