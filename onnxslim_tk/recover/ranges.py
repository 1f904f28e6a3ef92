"""Grids of activations: from what samples show, and where that pays, by the model's outputs."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import prod, sqrt
from typing import Final, Literal

import numpy as np

from onnxslim_tk.errors import SessionError
from onnxslim_tk.graph.grids import Affine, fitted
from onnxslim_tk.graph.model import Model
from onnxslim_tk.graph.regions import Grid, Regions
from onnxslim_tk.kernels.ranges import (
    Histogram,
    Method,
    activation_range,
    affine_parameters,
)
from onnxslim_tk.measure.observe import Statistics
from onnxslim_tk.measure.runtime import Feed
from onnxslim_tk.recover.grid_probe import Floats, GridProbe

Ranges = Literal["auto", "minmax", "moving-average", "percentile", "mse", "entropy"]
# Shares of the full range that are tried beside what the methods say.
_SHARES: Final = (1.0, 0.7, 0.5)
# Methods that are tried on all tensors at once, before single ones are looked at.
_TRIED: Final[tuple[Method, ...]] = ("percentile", "mse", "minmax")
# Tensors that make up so much of the noise at the outputs get a choice, if they are not too many.
_WORST: Final = 0.95
_MOST_TENSORS: Final = 12
# The few worst are also narrowed two at a time: one alone gains nothing where the other, which
# is made from it, drowns the same values.
_PAIRED: Final = 4
_FEWEST_FEEDS: Final = 4
_MOST_FEEDS: Final = 16
# Few outputs make most of the noise, and not the same ones on every feed: a method for all
# tensors is picked on this many times more.
_STARTING_FEEDS: Final = 4
# Values that may pass grids in one try; big inputs bring many positions each.
_ENOUGH_VALUES: Final = 50_000_000
# Decibels that a choice has to gain, so that it isn't chance.
_GAIN: Final = 0.05
_SILENT: Final = 1e-20


@dataclass(frozen=True, slots=True)
class _Head:
    """A grid that tensors share: what each method that is tried says, and narrower shares of it.

    The method's own comes first.
    """

    grid: Grid
    by_method: tuple[Affine, ...]
    shares: tuple[Affine, ...] = ()

    @property
    def candidates(self) -> tuple[Affine, ...]:
        """All different candidates, the method's own first."""
        return tuple(dict.fromkeys((*self.by_method, *self.shares)))


def choose_grids(
    model: Model,
    regions: Regions,
    statistics: Statistics,
    methods: Mapping[str, Ranges],
    feeds: Sequence[Feed],
) -> dict[str, Affine]:
    """The uint8 grid of every tensor of ``regions``, by tensor name.

    ``methods`` says by tensor name how ranges are picked. ``auto`` begins with least squared error
    for what convolutions read or integer operators make, and with extremes for all else (inputs
    of matrix products have outliers that matter); on ``feeds`` the tensors that disturb the
    model's outputs most then get the candidate that disturbs them least, one after the other.
    ``model`` is the float model, in operator set 13 or newer; it is only read.
    """
    heads = {}
    for grid in regions.grids.values():
        if grid.like not in heads:
            head = regions.grids.get(grid.like, grid)
            heads[grid.like] = _head(head, statistics, methods.get(grid.tensor.name, "auto"))
    chosen = {like: head.candidates[0] for like, head in heads.items()}
    if feeds and any(len(head.candidates) > 1 for head in heads.values()):
        chosen = _by_outputs(model, regions, heads, chosen, statistics, feeds)
    return {name: chosen[grid.like] for name, grid in regions.grids.items()}


def _head(grid: Grid, statistics: Statistics, ranges: Ranges) -> _Head:
    histogram = statistics.ranges.get(grid.like) or statistics.ranges[grid.tensor.name]
    if ranges != "auto":
        return _Head(grid, (_affine(histogram, ranges, grid),))
    by_error = grid.feeds_conv or grid.made_in_integers
    first: Method = "mse" if by_error else "minmax"
    found = [_affine(histogram, method, grid) for method in (first, *_TRIED)]
    shares = [_affine(histogram, "minmax", grid, share) for share in _SHARES]
    return _Head(grid, tuple(found), tuple(shares))


def _affine(histogram: Histogram, method: Method, grid: Grid, share: float = 1.0) -> Affine:
    low, high = activation_range(histogram, method, grid.floor, grid.ceiling)
    low = low if grid.floor is not None else low * share
    return fitted(grid, Affine(*affine_parameters(low, high * share)))


def _by_outputs(
    model: Model,
    regions: Regions,
    heads: Mapping[str, _Head],
    default: Mapping[str, Affine],
    statistics: Statistics,
    feeds: Sequence[Feed],
) -> dict[str, Affine]:
    """Coordinate descent over the worst grids, kept where feeds that it didn't see agree."""
    values = sum(prod(statistics.shapes.get(like, ())) for like in heads)
    count = min(max(_ENOUGH_VALUES // max(values, 1), _FEWEST_FEEDS), _MOST_FEEDS)
    try:
        probe = GridProbe(model, regions, feeds[: _STARTING_FEEDS * count])
    except SessionError:
        # The model as it is ran before; with switches in it the runtime may refuse.
        return dict(default)
    start = _best_start(probe, heads, default)
    chosen, errors = start, probe.errors(start, count)
    worst = _worst(probe, heads, chosen)
    for change in _changes(worst, heads):
        if all(chosen[like] == grid for like, grid in change.items()):
            continue
        tried = probe.errors(chosen | change, count)
        if _pays(errors, tried):
            errors, chosen = tried, chosen | change
    others = feeds[count : 2 * count]
    if others and chosen != start:
        judge = GridProbe(model, regions, others)
        if not _gain(judge.errors(start), judge.errors(chosen)).mean() > 0:
            return start
    return chosen


def _best_start(
    probe: GridProbe, heads: Mapping[str, _Head], default: Mapping[str, Affine]
) -> dict[str, Affine]:
    """One method for all tensors that leave a choice: the default, or what is plainly better."""
    chosen = dict(default)
    errors = probe.errors(chosen)
    for start in _starts(heads):
        tried = probe.errors(start)
        if start != chosen and _pays(errors, tried):
            errors, chosen = tried, start
    return chosen


def _starts(heads: Mapping[str, _Head]) -> Iterator[dict[str, Affine]]:
    """Every method that is tried, on all tensors that leave a choice."""
    for k in range(1, 1 + len(_TRIED)):
        yield {
            like: head.by_method[k if len(head.by_method) > 1 else 0]
            for like, head in heads.items()
        }


def _worst(probe: GridProbe, heads: Mapping[str, _Head], grids: Mapping[str, Affine]) -> list[str]:
    """The grids that alone make most of the noise at the outputs, the worst first."""
    alone = {like: float(probe.errors({like: grid}, feeds=1)[0]) for like, grid in grids.items()}
    order = sorted(alone, key=lambda like: -alone[like])
    shares = np.cumsum([alone[like] for like in order])
    enough = int(np.searchsorted(shares, _WORST * shares[-1])) + 1
    return [like for like in order[:enough] if len(heads[like].candidates) > 1][:_MOST_TENSORS]


def _changes(worst: Sequence[str], heads: Mapping[str, _Head]) -> Iterator[dict[str, Affine]]:
    """What is tried, in order: pairs made as narrow as may be, then single grids."""
    for pair in combinations(worst[:_PAIRED], 2):
        yield {like: heads[like].candidates[-1] for like in pair}
    for like in worst:
        for candidate in heads[like].candidates:
            yield {like: candidate}


def _pays(before: Floats, after: Floats) -> bool:
    """Whether errors ``(feeds,)`` fell by more than what chance lets expect."""
    gains = _gain(before, after)
    if not np.isfinite(gains).all():
        return False
    doubt = gains.std(ddof=1) / sqrt(len(gains)) if len(gains) > 1 else 0.0
    return bool(gains.mean() > max(doubt, _GAIN))


def _gain(before: Floats, after: Floats) -> Floats:
    """Decibels that each feed gains, so that no single one decides."""
    return 10 * np.log10(np.maximum(before, _SILENT) / np.maximum(after, _SILENT))
