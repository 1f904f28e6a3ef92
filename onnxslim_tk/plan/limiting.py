"""Limiting: of all rows on offer, those that save enough and make the least error."""

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import numpy as np
from scipy.optimize import LinearConstraint

from onnxslim_tk.plan.knapsack import alternatives, cheapest, exclusions
from onnxslim_tk.plan.proposal import Proposal

_MOST_ERROR: Final = 1e3
_FLOAT_BYTES: Final = 4

SAVED: Final[Mapping[str, Callable[[Proposal], float]]] = {
    "macs": lambda row: float(row.macs_saved),
    "latency": lambda row: row.cost_saved,
    # Rows tell the bytes of what they leave; weights are floats at this point.
    "parameters": lambda row: row.bytes_saved / _FLOAT_BYTES,
}
"""What a row saves of each figure of a model."""


def least_error(proposals: Sequence[Proposal], needs: Mapping[str, float]) -> list[Proposal] | None:
    """Rows that save ``needs`` of each figure with the least summed error; None where none do.

    Errors and savings are taken as additive: a multiple-choice knapsack over all methods (Sinha
    and Zoltners, 1979).
    """
    rows = list(proposals)
    wanted = {figure: need for figure, need in needs.items() if need > 0}
    if not rows or not wanted:
        return None if wanted else []
    errors = np.minimum(np.array([row.error for row in rows]), _MOST_ERROR)
    saved = {figure: np.array([SAVED[figure](row) for row in rows]) for figure in wanted}
    limits = [
        LinearConstraint(saved[figure][None] / need, 1.0, np.inf) for figure, need in wanted.items()
    ]
    # Of equal errors the larger saving; numbers near 1 suit the solver.
    more = sum(saved[figure] / need for figure, need in wanted.items())
    cost = errors / max(float(errors.max()), 1e-30) - 1e-9 * more
    taken = cheapest(cost, exclusions(rows, alternatives(rows)), limits)
    return None if taken is None else [row for row, wish in zip(rows, taken, strict=True) if wish]
