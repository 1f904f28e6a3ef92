"""Rewrites that lose something: tried on samples, and taken while the outputs bear them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from typing import Final

import numpy as np

from onnxslim_tk.graph.model import Model
from onnxslim_tk.measure.probe import Probe
from onnxslim_tk.plan.proposal import LEAST_ERROR, Context, Proposal, Refusal

_FEEDS: Final = 12


@dataclass(frozen=True, slots=True, eq=False)
class Rewrite:
    """A row whose error isn't known yet, and what it does to a copy of the model.

    ``most`` is the largest error of the model's outputs that it may end with.
    """

    row: Proposal
    make: Callable[[Model], None]
    most: float


def bearable(
    model: Model, rewrites: Sequence[Rewrite], context: Context, apart: bool = False
) -> Iterator[Proposal | Refusal]:
    """Rows of those rewrites that the outputs bear together, the others as refusals.

    Those of least error come first; each is taken unless the outputs would then miss more than it
    allows (relative squared error on samples). A row's error is what it does alone. Rewrites
    that have to stay ``apart`` are not taken beside one that has a target in common.
    """
    if not rewrites:
        return
    method = rewrites[0].row.method
    probe = Probe(model, context.feeds[:_FEEDS]) if context.feeds else None
    if probe is None or not probe.measures:
        reason = "what it would cost takes samples to be told"
        yield from (Refusal(rewrite.row.targets[0], method, reason) for rewrite in rewrites)
        return
    errors = list(context.each(f"{method}: try", lambda r: probe.error(r.make), rewrites))
    taken: Model | None = None
    gone: set[str] = set()
    found: dict[int, Proposal | Refusal] = {}
    for k in np.argsort(errors, kind="stable").tolist():
        rewrite, both, others = rewrites[k], errors[k], ""
        if apart and gone.intersection(rewrite.row.targets):
            reason = "another that lies inside it, or around it, goes already"
            found[k] = Refusal(rewrite.row.targets[0], method, reason)
            continue
        if both <= rewrite.most:
            trial = (taken or model).copy()
            rewrite.make(trial)
            if taken is not None:
                both, others = probe.difference(trial), ", with others that cost less"
        if both > rewrite.most:
            reason = "the model would not run, or give what is not finite"
            if isfinite(both):
                reason = f"the outputs would miss {both:.1%}{others}; "
                reason += f"max_error allows {rewrite.most:.1%}"
            found[k] = Refusal(rewrite.row.targets[0], method, reason)
            continue
        taken = trial
        gone.update(rewrite.row.targets)
        found[k] = replace(rewrite.row, error=max(errors[k], LEAST_ERROR), measured=True)
    yield from (found[k] for k in sorted(found))
