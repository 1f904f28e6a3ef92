"""How a group of channels may be cut: which go in which order, and what that costs and frees."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import floor, gcd
from typing import Final

import numpy as np
from numpy.typing import NDArray

from onnxslim_tk.graph.groups import Group
from onnxslim_tk.graph.layers import Layer
from onnxslim_tk.kernels.elimination import Elimination, Reader, eliminate
from onnxslim_tk.plan.allocation import Shares
from onnxslim_tk.plan.proposal import Context, Proposal
from onnxslim_tk.recover.narrowing import readers_of
from onnxslim_tk.recover.ranking import by_scores, importance

Indices = NDArray[np.int64]
_MILDER: Final = 3


def staying(cuts: Sequence[tuple[Group, Indices]]) -> dict[str, dict[int, NDArray[np.bool_]]]:
    """Which entries stay on each axis of each layer's weight, by id and axis."""
    found: dict[str, dict[int, NDArray[np.bool_]]] = {}
    for group, kept in cuts:
        gone = np.setdiff1d(np.arange(group.count), kept)
        for part in group.touched:
            stays = ~np.isin(group.channels_on(part.labels), gone)
            axes = found.setdefault(part.layer.id, {})
            axes[part.axis] = axes.get(part.axis, np.ones_like(stays)) & stays
    return found


def rows_left(layer: Layer, stays: Mapping[int, NDArray[np.bool_]]) -> NDArray[np.bool_]:
    """Which outputs of a layer stay."""
    axis = layer.channel_axis
    return stays.get(axis, np.ones(layer.shape[axis], bool))


def step_of(group: Group, context: Context) -> int:
    """How many channels of a group fill one step of the target's."""
    step = context.target.channel_step
    return step // gcd(step, group.width)


def kept_count(count: int, keep: float, step: int) -> int:
    """How many of ``count`` channels stay of a share ``keep``, in whole steps, at least one."""
    return max(step, floor(count * keep / step + 0.5) * step)


def milder(kept: int, count: int, step: int) -> list[int]:
    """Up to three counts between ``kept`` and ``count``, in steps, evenly spread."""
    between = list(range(kept + step, count, step))
    if len(between) <= _MILDER:
        return between
    spread = np.linspace(0, len(between), _MILDER + 2)[1:-1]
    return [between[int(k)] for k in spread]


@dataclass(frozen=True, slots=True)
class Choice:
    """A group, how it is to be cut, and in which order its channels go."""

    group: Group
    method: str
    keep: float
    readers: list[Reader]
    found: Elimination
    step: int
    least: int

    @classmethod
    def of(
        cls,
        group: Group,
        method: str,
        keep: float,
        kind: str,
        context: Context,
        given: NDArray[np.float64] | None = None,
    ) -> "Choice":
        """Rank the channels by ``kind``: ``obs`` or one of the scores of :func:`importance`.

        Where scores are ``given``, they count.
        """
        step = step_of(group, context)
        least = kept_count(group.count, keep, step)
        readers = readers_of(group, context.statistics)
        sizes = np.bincount(group.parts)
        floors = [max(1, min(int(n), round(int(n) * least / group.count))) for n in sizes]
        if kind == "obs" and given is None:
            found = eliminate(readers, floors, group.parts)
        else:
            scores = importance(group, readers, kind, context.seed) if given is None else given
            found = by_scores(readers, scores, floors, group.parts)
        return cls(group, method, keep, readers, found, step, max(least, sum(floors)))

    def kept(self, count: int) -> Indices:
        """The channels that stay where ``count`` do."""
        gone = self.found.order[: self.group.count - count]
        return np.setdiff1d(np.arange(self.group.count), gone)

    def error(self, count: int) -> float:
        """Squared change of the readers' outputs over their power, the mean over readers."""
        gone = self.group.count - count
        return float(self.found.errors[gone - 1] / len(self.readers)) if gone else 0.0

    def shares(self, count: int) -> Shares:
        """What goes of the layers' weights, by layer and axis."""
        stays = staying([(self.group, self.kept(count))])
        return {
            name: {axis: float(1 - mask.mean()) for axis, mask in axes.items()}
            for name, axes in stays.items()
        }

    @property
    def counts(self) -> list[int]:
        """The counts on offer, all channels first."""
        return [self.group.count, *range(self.least, self.group.count, self.step)[::-1]]

    def row(self, count: int) -> Proposal:
        """The row that leaves ``count`` channels, its savings left open."""
        setting = self.keep if count == self.least else round(count / self.group.count, 4)
        details = {"kept": self.kept(count).tolist(), "group": list(self.group.id)}
        targets = tuple(layer.id for layer in self.group.layers)
        return Proposal(targets, self.method, setting, details, error=self.error(count))
