"""Channel pruning: layers are made narrower, and what reads them makes up for it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import floor
from typing import Any, ClassVar, Literal
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from onnxslim_tk.errors import RecipeError
from onnxslim_tk.graph.channel_flow import Count
from onnxslim_tk.graph.edit import constant, output_names, values_of
from onnxslim_tk.graph.groups import Barrier, Group, channel_groups
from onnxslim_tk.graph.model import Model, Tensor
from onnxslim_tk.packing import packed_bytes
from onnxslim_tk.plan.proposal import Context, Observable, Proposal, Refusal, matches
from onnxslim_tk.recover.bias import moments_of, shift_bytes
from onnxslim_tk.recover.columns import Refit, channel_energies, refit_inputs

Array = NDArray[Any]
Indices = NDArray[np.int64]
_MILDER = 3


@dataclass(frozen=True, slots=True)
class Channels:
    """Whole channels go, in all layers that share them.

    ``keep`` is the share of channels that stay, rounded to the target's step. ``importance`` says
    which: those that bring most energy to the layers that read them (``energy``, from samples;
    ``l2`` without), those whose makers' weights are largest (``l1``, ``l2``; Li et al., 2017), or
    any (``random``). With samples the reading layers are refitted by least squares.
    """

    name: ClassVar[str] = "channels"
    main: ClassVar[str] = "keep"
    observes: ClassVar[frozenset[Observable]] = frozenset({"covariance"})

    keep: float = 0.5
    importance: Literal["energy", "l1", "l2", "random"] = "energy"

    def __post_init__(self) -> None:
        if not 0 < self.keep <= 1:
            raise RecipeError(f"channels: keep must be in (0, 1], got {self.keep}")
        if self.importance not in ("energy", "l1", "l2", "random"):
            raise RecipeError(
                f"channels: importance must be energy, l1, l2 or random, got {self.importance!r}"
            )

    def propose(self, model: Model, context: Context) -> Iterator[Proposal | Refusal]:
        """One row a group with the share asked for, then up to three milder ones."""
        outputs = output_names(model)
        choices: list[_Choice] = []
        for found in channel_groups(model, context.shapes):
            tuned = _tuned(self, model, found, context)
            if tuned is None:
                continue
            reason = found.reason if isinstance(found, Barrier) else _refusal(found, tuned, context)
            if reason or isinstance(found, Barrier):
                yield from (Refusal(target, self.name, reason) for target in found.id)
            else:
                choices.append(_Choice.of(found, tuned, context))
        # Where two rows cut the same weight, the one on its inputs counts what the other leaves.
        rows = {layer.id: c.kept() for c in choices for layer in c.group.producers}
        for choice in choices:
            yield from choice.rows(rows, context, outputs)

    def apply(self, model: Model, chosen: Sequence[Proposal], context: Context) -> None:
        """Refit the layers that lose inputs, then cut the channels that the rows don't keep."""
        kept = {tuple(row.details["group"]): row.details["kept"] for row in chosen}
        groups = _groups(model, context)
        cuts = {key: _checked(key, groups.get(key), indices) for key, indices in kept.items()}
        outputs = output_names(model)
        for key, indices in cuts.items():
            _recover(model, groups[key], indices, context, outputs)
        # A refit may have brought biases that are to be cut as well.
        groups = _groups(model, context)
        done: dict[tuple[int, int, tuple[str, ...]], tuple[Tensor, Tensor]] = {}
        for key, indices in cuts.items():
            _cut(model, groups[key], indices, done)


def _groups(model: Model, context: Context) -> dict[tuple[str, ...], Group]:
    found = channel_groups(model, context.shapes)
    return {group.id: group for group in found if isinstance(group, Group)}


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


def _kept_count(count: int, keep: float, step: int) -> int:
    return max(step, floor(count * keep / step + 0.5) * step)


def _refusal(group: Group, tuned: Channels, context: Context) -> str:
    step = context.target.channel_step
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
    """A group, how it is to be cut, and its channels, the most important first."""

    group: Group
    tuned: Channels
    order: Indices
    step: int

    @classmethod
    def of(cls, group: Group, tuned: Channels, context: Context) -> "_Choice":
        scores = _importance(group, tuned.importance, context)
        order = np.argsort(-scores, kind="stable").astype(np.int64)
        return cls(group, tuned, order, context.target.channel_step)

    def kept(self, count: int | None = None) -> Indices:
        """The channels that stay, by default those that the asked-for setting leaves."""
        if count is None:
            count = _kept_count(self.group.count, self.tuned.keep, self.step)
        return np.sort(self.order[:count])

    def rows(
        self, left: Mapping[str, Indices], context: Context, outputs: set[str]
    ) -> Iterator[Proposal]:
        group, asked = self.group, len(self.kept())
        for count in (asked, *_milder(asked, group.count, self.step)):
            kept = self.kept(count)
            refits = {
                layer.id: refit_inputs(
                    layer, kept, group.count, moments_of(layer, context.statistics)
                )
                for layer in group.consumers
            }
            macs = _macs_saved(group, count, left, context)
            yield Proposal(
                tuple(layer.id for layer in group.layers),
                self.tuned.name,
                self.tuned.keep if count == asked else round(count / group.count, 4),
                {"kept": kept.tolist(), "group": list(group.id)},
                bytes_saved=_bytes_saved(group, kept, refits, left, context, outputs),
                macs_saved=macs,
                cost_saved=context.target.time_of_macs(macs),
                error=float(np.mean([refit.error for refit in refits.values()])),
            )


def _importance(group: Group, kind: str, context: Context) -> NDArray[np.float64]:
    if kind == "random":
        rng = np.random.default_rng([context.seed, crc32("\n".join(group.id).encode())])
        return rng.random(group.count)
    if kind == "energy":
        seen = [(layer, moments_of(layer, context.statistics)) for layer in group.consumers]
        if all(moments is not None and moments.second is not None for _, moments in seen):
            return _total([channel_energies(layer, group.count, m) for layer, m in seen])
    power = 1 if kind == "l1" else 2
    norms = [np.linalg.norm(layer.matrix()[0], power, axis=1) for layer in group.producers]
    # Each maker has the same say, whatever the scale of its weights.
    return _total([norm / (norm.mean() or 1.0) for norm in norms])


def _total(scores: Sequence[Array]) -> NDArray[np.float64]:
    return np.asarray(np.sum(scores, axis=0), np.float64)


def _macs_saved(group: Group, kept: int, left: Mapping[str, Indices], context: Context) -> int:
    share, total = kept / group.count, 0.0
    producers = {layer.id for layer in group.producers}
    consumers = {layer.id for layer in group.consumers}
    for layer in group.layers:
        macs, stays = layer.macs(context.shapes) or 0, share
        if layer.id in producers and layer.id in consumers:
            stays = share * share
        elif layer.id in consumers and layer.id in left:
            macs = round(macs * len(left[layer.id]) / layer.channels)
        total += macs * (1 - stays)
    return round(total)


def _bytes_saved(
    group: Group,
    kept: Indices,
    refits: Mapping[str, Refit],
    left: Mapping[str, Indices],
    context: Context,
    outputs: set[str],
) -> int:
    producers = {layer.id for layer in group.producers}
    weights = {id(layer.node): layer for layer in group.consumers}
    slots: dict[int, list[Any]] = {}
    for cut in group.cuts:
        slots.setdefault(id(cut.tensor), []).append(cut)
    saved = 0
    for cuts in slots.values():
        before = after = values_of(cuts[0].tensor)
        layer = weights.get(id(cuts[0].node)) if cuts[0].slot == 1 else None
        if layer is not None and any(cut.role == "consumes" for cut in cuts):
            after = refits[layer.id].weight
            if layer.id in left and layer.id not in producers:
                rows = left[layer.id]
                before, after = (v.take(rows, layer.channel_axis) for v in (before, after))
        # Two nodes may share a vector: it is cut once.
        for axis, block in {cut.axis: cut.block for cut in cuts}.items():
            after = after.take(_entries(kept, block), axis)
        saved += packed_bytes(before) - packed_bytes(after)
    for layer in group.consumers:
        extra = shift_bytes(layer, context.statistics, outputs)
        gone = layer.channels - len(left[layer.id]) if layer.id in left and extra else 0
        saved -= extra - 4 * gone
    return saved


def _entries(kept: Indices, block: int) -> Indices:
    return (kept[:, None] * block + np.arange(block)).ravel()


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


def _recover(
    model: Model, group: Group, kept: Indices, context: Context, outputs: set[str]
) -> None:
    """Refit the consumers at their full size, with zeros for the inputs that go."""
    for layer in group.consumers:
        moments = moments_of(layer, context.statistics)
        if moments is None or moments.second is None:
            continue
        refit = refit_inputs(layer, kept, group.count, moments)
        if refit.shift is not None:
            # Groups hold no layer whose bias can't take it.
            layer.shift_bias(model, refit.shift, outputs)
        layer.set_dense(model, refit.weight)


def _cut(
    model: Model,
    group: Group,
    kept: Indices,
    done: dict[tuple[int, int, tuple[str, ...]], tuple[Tensor, Tensor]],
) -> None:
    for cut in group.cuts:
        tensor = cut.tensor
        key = (id(tensor), cut.axis, group.id)
        if key not in done:
            # Held with its successor, so that no other tensor gets its id.
            shorter = values_of(tensor).take(_entries(kept, cut.block), cut.axis)
            done[key] = tensor, constant(model, shorter)
        cut.node.inputs[cut.slot] = done[key][1]
    for count in group.counts:
        _restate(model, count, len(kept))


def _restate(model: Model, count: Count, kept: int) -> None:
    if count.attribute:
        count.node.attrs[count.attribute] = kept * count.block
        return
    values = values_of(count.node.inputs[count.slot]).copy()
    values.reshape(-1)[count.index] = kept * count.block
    count.node.inputs[count.slot] = constant(model, values)
