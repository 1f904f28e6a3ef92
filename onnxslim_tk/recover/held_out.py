"""What methods do on samples that they weren't fitted to."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Final

from onnxslim_tk.graph.model import Model
from onnxslim_tk.measure.observe import observe
from onnxslim_tk.measure.probe import Probe
from onnxslim_tk.measure.runtime import Feed
from onnxslim_tk.plan.proposal import Context, Observable

_PROBED: Final = 12


@dataclass(frozen=True, slots=True)
class HeldOut:
    """A ``probe`` on some ``feeds``, and a ``context`` that knows nothing of them."""

    feeds: Sequence[Feed]
    probe: Probe
    context: Context


def held_out(model: Model, context: Context, wanted: Collection[Observable]) -> HeldOut | None:
    """Hold up to 12 feeds out, at most a quarter; the others show ``wanted``.

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
    seen = observe(model, rest, frozenset(wanted), context.seed, context.shapes)
    return HeldOut(feeds, probe, replace(context, feeds=(), statistics=seen))
