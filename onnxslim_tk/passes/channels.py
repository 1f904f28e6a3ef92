"""Channel pruning: layers are made narrower, and what reads them makes up for it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import floor, gcd
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from onnxslim_tk.errors import RecipeError
from onnxslim_tk.graph.channel_cut import cut_channels
from onnxslim_tk.graph.edit import output_names, values_of
from onnxslim_tk.graph.groups import Barrier, Group, channel_groups
from onnxslim_tk.graph.layers import Layer, layers
from onnxslim_tk.graph.model import Model
from onnxslim_tk.kernels.elimination import Elimination, Reader, eliminate
from onnxslim_tk.measure.probe import Probe
from onnxslim_tk.packing import packed_bytes
from onnxslim_tk.plan.allocation import Figures, Ladder, Shares, allocate
from onnxslim_tk.plan.proposal import Context, Observable, Proposal, Refusal, matches
from onnxslim_tk.recover.bias import moments_of, shift_bytes
from onnxslim_tk.recover.narrowing import Loss, columns_on, readers_of, refit, refit_in_order
from onnxslim_tk.recover.ranking import by_scores, importance

Array = NDArray[Any]
Indices = NDArray[np.int64]
_MILDER = 3
_PROBED = 12
_IMPORTANCE = ("obs", "energy", "l1", "l2", "random")


@dataclass(frozen=True, slots=True)
class Channels:
    """Whole channels go, in all layers that share them.

    ``keep`` is the share of channels that stay, rounded to the target's step. With ``macs``,
    ``latency`` or ``parameters``, shares of the model's that may stay, each group keeps what makes
    the least error at the outputs, and ``keep`` is the least of any. ``importance`` says which
    channels stay: those whose loss the others can't make up for (``obs``; Hassibi and Stork,
    1993), that bring most energy to what reads them (``energy``), whose makers' weights are
    largest (``l1``, ``l2``; Li et al., 2017), or any (``random``). Of attention whole ``heads``
    go, or places in all of them (``size``). With samples the reading layers are refitted, at last
    one after the other unless ``sequential`` is off.
    """

    name: ClassVar[str] = "channels"
    main: ClassVar[str] = "keep"
    observes: ClassVar[frozenset[Observable]] = frozenset({"covariance"})

    keep: float = 0.5
    importance: Literal["obs", "energy", "l1", "l2", "random"] = "obs"
    macs: float | None = None
    latency: float | None = None
    parameters: float | None = None
    attention: Literal["heads", "size"] = "heads"
    sequential: bool = True

    def __post_init__(self) -> None:
        for name in ("keep", "macs", "latency", "parameters"):
            share = getattr(self, name)
            if share is not None and not 0 < share <= 1:
                raise RecipeError(f"channels: {name} must be in (0, 1], got {share}")
        if self.importance not in _IMPORTANCE:
            raise RecipeError(
                f"channels: importance must be obs, energy, l1, l2 or random, "
                f"got {self.importance!r}"
            )
        if self.attention not in ("heads", "size"):
            raise RecipeError(f"channels: attention must be heads or size, got {self.attention!r}")

    def propose(self, model: Model, context: Context) -> Iterator[Proposal | Refusal]:
        """One row a group with the share asked for, then up to three milder ones."""
        choices: list[_Choice] = []
        for found in channel_groups(model, context.shapes, self.attention):
            tuned = _tuned(self, model, found, context)
            if tuned is None:
                continue
            reason = found.reason if isinstance(found, Barrier) else _refusal(found, tuned, context)
            if reason or isinstance(found, Barrier):
                targets = found.id if isinstance(found, Barrier) else _makers(found)
                yield from (Refusal(target, self.name, reason) for target in targets)
            else:
                choices.append(_Choice.of(found, tuned, context))
        asked = [choice.least for choice in choices]
        limits = {name: getattr(self, name) for name in ("macs", "latency", "parameters")}
        given = {name: share for name, share in limits.items() if share is not None}
        if given and choices:
            every = _allocated(self, model, choices, given, context)
            asked = [min(counts) for counts in zip(*every, strict=True)]
        yield from _rows(model, choices, asked, context)

    def apply(self, model: Model, chosen: Sequence[Proposal], context: Context) -> None:
        """Refit the layers that lose inputs, cut, and refit them again in what came of it."""
        groups = _groups(self, model, context)
        wanted = {tuple(row.details["group"]): row.details["kept"] for row in chosen}
        kept = {key: _checked(key, groups.get(key), given) for key, given in wanted.items()}
        outputs, feeds = output_names(model), context.feeds
        again = self.sequential and context.statistics is not None and len(feeds) > 1
        original = (context.reference or model).copy() if again else None
        stays = _staying([(groups[key], indices) for key, indices in kept.items()])
        losses = {
            part.layer.id: Loss(part.layer, columns_on(part.layer, stays[part.layer.id][part.axis]))
            for key in kept
            for part in groups[key].touched
            if part.role == "consumes"
        }
        refit(model, list(losses.values()), context.statistics, outputs)
        rows = {
            layer.id: _rows_left(layer, stays[layer.id])
            for key in kept
            for layer in groups[key].layers
        }
        # A refit may have brought biases that are to be cut as well.
        groups = _groups(self, model, context)
        cut_channels(model, [(groups[key], indices) for key, indices in kept.items()])
        if original is not None:
            refit_in_order(model, original, frozenset(losses), rows, feeds, outputs, context.seed)


def _groups(method: Channels, model: Model, context: Context) -> dict[tuple[str, ...], Group]:
    found = channel_groups(model, context.shapes, method.attention)
    return {group.id: group for group in found if isinstance(group, Group)}


def _makers(group: Group) -> tuple[str, ...]:
    return tuple(layer.id for layer in group.producers)


def _staying(cuts: Sequence[tuple[Group, Indices]]) -> dict[str, dict[int, NDArray[np.bool_]]]:
    """Which entries stay on each axis of each layer's weight, by id and axis."""
    found: dict[str, dict[int, NDArray[np.bool_]]] = {}
    for group, kept in cuts:
        gone = np.setdiff1d(np.arange(group.count), kept)
        for part in group.touched:
            stays = ~np.isin(group.channels_on(part.labels), gone)
            axes = found.setdefault(part.layer.id, {})
            axes[part.axis] = axes.get(part.axis, np.ones_like(stays)) & stays
    return found


def _rows_left(layer: Layer, stays: Mapping[int, NDArray[np.bool_]]) -> NDArray[np.bool_]:
    axis = layer.channel_axis
    return stays.get(axis, np.ones(layer.shape[axis], bool))


def _tuned(
    method: Channels, model: Model, found: Group | Barrier, context: Context
) -> Channels | None:
    """The settings for a group: those of its makers, the mildest where they differ."""
    names = [model.origins.get(key, (key,)) for key in found.id]
    if isinstance(found, Group):
        names = [layer.names for layer in found.producers]
        touched = [name for layer in found.layers for name in layer.names]
        if any(matches(pattern, touched) for pattern in context.exclude):
            return None
    tuned = [context.tuned(method, each) for each in names]
    given = [each for each in tuned if each is not None]
    if len(given) < len(tuned):
        return None
    return max((t for t in given if t != method), key=lambda t: t.keep, default=method)


def _step(group: Group, context: Context) -> int:
    """How many channels of a group fill one step of the target's."""
    step = context.target.channel_step
    return step // gcd(step, group.width)


def _kept_count(count: int, keep: float, step: int) -> int:
    return max(step, floor(count * keep / step + 0.5) * step)


def _refusal(group: Group, tuned: Channels, context: Context) -> str:
    step = _step(group, context)
    if group.count <= step:
        return f"{group.count} channels are no more than one step of {step}"
    if _kept_count(group.count, tuned.keep, step) >= group.count:
        return f"keep {tuned.keep:g} leaves all {group.count} channels, rounded to steps of {step}"
    for layer in group.layers:
        if not np.isfinite(layer.weight).all():
            return f"the weight of '{layer.id}' holds values that are not finite"
    return ""


def _milder(kept: int, count: int, step: int) -> list[int]:
    """Up to three counts between ``kept`` and ``count``, in steps, evenly spread."""
    between = list(range(kept + step, count, step))
    if len(between) <= _MILDER:
        return between
    spread = np.linspace(0, len(between), _MILDER + 2)[1:-1]
    return [between[int(k)] for k in spread]


@dataclass(frozen=True, slots=True)
class _Choice:
    """A group, how it is to be cut, and in which order its channels go."""

    group: Group
    tuned: Channels
    readers: list[Reader]
    found: Elimination
    step: int
    least: int

    @classmethod
    def of(cls, group: Group, tuned: Channels, context: Context) -> "_Choice":
        step = _step(group, context)
        least = _kept_count(group.count, tuned.keep, step)
        readers = readers_of(group, context.statistics)
        sizes = np.bincount(group.parts)
        floors = [max(1, min(int(n), round(int(n) * least / group.count))) for n in sizes]
        if tuned.importance == "obs":
            found = eliminate(readers, floors, group.parts)
        else:
            scores = importance(group, readers, tuned.importance, context.seed)
            found = by_scores(readers, scores, floors, group.parts)
        return cls(group, tuned, readers, found, step, max(least, sum(floors)))

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
        stays = _staying([(self.group, self.kept(count))])
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
        setting = self.tuned.keep if count == self.least else round(count / self.group.count, 4)
        details = {"kept": self.kept(count).tolist(), "group": list(self.group.id)}
        targets = tuple(layer.id for layer in self.group.layers)
        return Proposal(targets, self.tuned.name, setting, details, error=self.error(count))


def _allocated(
    method: Channels,
    model: Model,
    choices: Sequence[_Choice],
    shares: Mapping[str, float],
    context: Context,
) -> list[list[int]]:
    """How many channels each group keeps, so that each figure of the model falls to its share."""
    found = list(layers(model))
    figures = Figures(found, context.shapes, context.target)
    weights = _output_errors(method, model, choices, context)
    ladders = [
        Ladder(
            [choice.error(count) * weight for count in choice.counts],
            [choice.shares(count) for count in choice.counts],
        )
        for choice, weight in zip(choices, weights, strict=True)
    ]
    names = [layer.id for layer in found]
    every = [
        allocate(ladders, getattr(figures, name), names, share) for name, share in shares.items()
    ]
    return [
        [choice.counts[step] for choice, step in zip(choices, steps, strict=True)]
        for steps in every
    ]


def _output_errors(
    method: Channels, model: Model, choices: Sequence[_Choice], context: Context
) -> list[float]:
    """What the readers' relative error of each group weighs at the model's outputs."""
    if len(context.feeds) < 2 or context.statistics is None:
        return [1.0] * len(choices)
    probe = Probe(model, context.feeds[:_PROBED])
    if not probe.measures:
        return [1.0] * len(choices)
    alone = replace(context, feeds=())
    found = []
    for choice in choices:
        # About a third less: what breaks the model tells little of what doesn't.
        count = choice.counts[-(-len(choice.counts) // 3)]
        row = choice.row(count)
        error = probe.error(lambda twin, row=row: method.apply(twin, [row], alone))  # type: ignore[misc]
        expected = choice.error(count)
        found.append(min(error, 1e9) / expected if expected > 0 else 1.0)
    return found


def _rows(
    model: Model, choices: Sequence[_Choice], asked: Sequence[int], context: Context
) -> Iterator[Proposal]:
    """Rows with what they save where the other groups are cut as asked for."""
    found = list(layers(model))
    figures = Figures(found, context.shapes, context.target)
    outputs = output_names(model)
    whole: dict[str, dict[int, float]] = {layer.id: {} for layer in found}
    every = [choice.shares(count) for choice, count in zip(choices, asked, strict=True)]
    for k, (choice, least) in enumerate(zip(choices, asked, strict=True)):
        if least == choice.group.count:
            continue
        makers = {layer.id for layer in choice.group.producers}
        others: dict[str, dict[int, float]] = {name: dict(axes) for name, axes in whole.items()}
        for j, shares in enumerate(every):
            # Where two rows cut the same weight, that on its inputs counts what the other leaves.
            for name, axes in shares.items():
                for axis, share in axes.items() if j != k and name not in makers else ():
                    others[name][axis] = others[name].get(axis, 0.0) + share
        for count in (least, *_milder(least, choice.group.count, choice.step)):
            own = choice.shares(count)
            saved = [
                sum(
                    figure(name, others[name]) - figure(name, _sum(others[name], axes))
                    for name, axes in own.items()
                )
                for figure in (figures.macs, figures.latency)
            ]
            yield replace(
                choice.row(count),
                bytes_saved=_bytes_saved(choice, count, others, context, outputs),
                macs_saved=round(saved[0]),
                cost_saved=saved[1],
            )


def _sum(first: Mapping[int, float], second: Mapping[int, float]) -> dict[int, float]:
    return {axis: first.get(axis, 0.0) + second.get(axis, 0.0) for axis in {*first, *second}}


def _bytes_saved(
    choice: _Choice,
    count: int,
    others: Mapping[str, Mapping[int, float]],
    context: Context,
    outputs: set[str],
) -> int:
    group, kept = choice.group, choice.kept(count)
    gone = np.setdiff1d(np.arange(group.count), kept)
    tensors: dict[int, tuple[Array, dict[int, Indices], str]] = {}
    owners = {(id(layer.node), layer.slot): layer.id for layer in group.layers}
    for cut in group.view.flow.cuts:
        lost = np.isin(group.channels_on(cut.labels), gone)
        if lost.any():
            tensor = cut.node.inputs[cut.slot]
            name = owners.get((id(cut.node), cut.slot), "")
            # Two nodes may share a vector: it is cut once.
            _, axes, _ = tensors.setdefault(id(tensor), (values_of(tensor), {}, name))
            axes[cut.axis] = np.flatnonzero(~lost)
    saved = 0.0
    refitted = {layer.id for layer in group.consumers if moments_of(layer, context.statistics)}
    for values, axes, name in tensors.values():
        before, after = packed_bytes(values), values
        for axis, left in axes.items():
            after = after.take(left, axis)
        there = 1.0
        for axis, share in others.get(name, {}).items():
            there *= 1 - share if axis not in axes else 1.0
        # What a refit writes are numbers without any regularity.
        size = 4 * after.size if name in refitted else packed_bytes(after)
        saved += (before - size) * there
    for layer in group.consumers:
        extra = shift_bytes(layer, context.statistics, outputs)
        share = others[layer.id].get(layer.channel_axis, 0.0) if extra else 0.0
        saved -= extra - round(4 * layer.channels * share)
    return round(saved)


def _checked(key: tuple[str, ...], group: Group | None, kept: Sequence[int]) -> Indices:
    name = ", ".join(key)
    if group is None:
        raise RecipeError(f"channels: the model has no channels to cut that '{name}' make")
    indices = np.unique(np.asarray(kept, np.int64))
    if not len(indices) or len(indices) < len(kept):
        raise RecipeError(f"channels: kept must be different channels of '{name}', got {kept}")
    if indices[0] < 0 or indices[-1] >= group.count:
        raise RecipeError(
            f"channels: kept must be channels of '{name}' below {group.count}, got {kept}"
        )
    return indices
