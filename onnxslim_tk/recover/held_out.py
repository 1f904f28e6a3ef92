"""What methods do on samples that they weren't fitted to."""

from dataclasses import dataclass, replace
from typing import Final

from onnxslim_tk.graph.model import Model
from onnxslim_tk.measure.observe import Statistics, observe
from onnxslim_tk.measure.probe import Probe
from onnxslim_tk.plan.proposal import Context, Observable

_PROBED: Final = 12


@dataclass(frozen=True, slots=True)
class HeldOut:
    """A ``probe`` on some samples, what they show, and a ``context`` that knows nothing of them."""

    probe: Probe
    shown: Statistics
    context: Context


def held_out(model: Model, context: Context, wanted: frozenset[Observable]) -> HeldOut | None:
    """Hold up to 12 feeds out, at most a quarter; they and the others show ``wanted``.

    A layer that many samples' worth of weights fit looks free on those samples, and isn't. None
    where there are fewer than two feeds, or no output whose error is a number.
    """
    if len(context.feeds) < 2 or context.statistics is None:
        return None
    count = max(1, min(_PROBED, len(context.feeds) // 4))
    feeds, rest = context.feeds[:count], context.feeds[count:]
    probe = Probe(model, feeds)
    if not probe.measures:
        return None
    shown, seen = (
        observe(model, part, wanted, context.seed, context.shapes) for part in (feeds, rest)
    )
    return HeldOut(probe, shown, replace(context, feeds=(), statistics=seen))
