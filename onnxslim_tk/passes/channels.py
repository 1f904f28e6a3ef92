"""Channel pruning: layers are made narrower, and what reads them makes up for it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from onnxslim_tk.errors import RecipeError
from onnxslim_tk.graph.channel_cut import cut_channels
from onnxslim_tk.graph.edit import output_names
from onnxslim_tk.graph.groups import Barrier, Group, channel_groups
from onnxslim_tk.graph.layers import layers
from onnxslim_tk.graph.model import Model
from onnxslim_tk.plan.allocation import Figures, Ladder, allocate
from onnxslim_tk.plan.proposal import Context, Observable, Proposal, Refusal, matches
from onnxslim_tk.recover.choices import Choice, kept_count, rows_left, staying, step_of
from onnxslim_tk.recover.held_out import held_out
from onnxslim_tk.recover.in_order import comparable, refit_in_order
from onnxslim_tk.recover.narrowing import Loss, columns_on, missed, refit
from onnxslim_tk.recover.savings import rows_of

Indices = NDArray[np.int64]
_IMPORTANCE = ("obs", "energy", "taylor", "l1", "l2", "random")


@dataclass(frozen=True, slots=True)
class Channels:
    """Whole channels go, in all layers that share them.

    ``keep`` is the share of channels that stay, rounded to the target's step. With ``macs``,
    ``latency`` or ``parameters``, shares of the model's that may stay, each group keeps what makes
    the least error at the outputs, and ``keep`` is the least of any. ``importance`` says which
    channels stay: those whose loss the others can't make up for (``obs``; Hassibi and Stork,
    1993), that bring most energy to what reads them (``energy``), whose loss changes the outputs
    most by gradients (``taylor``; Molchanov et al., 2019), whose makers' weights are largest
    (``l1``, ``l2``; Li et al., 2017), or any (``random``). Of attention whole ``heads`` go, or
    places of the values in all of them (``size``). With samples the reading layers are refitted, at
    last one after the other unless ``sequential`` is off.
    """

    name: ClassVar[str] = "channels"
    main: ClassVar[str] = "keep"
    observes: ClassVar[frozenset[Observable]] = frozenset({"covariance"})
    whole: ClassVar[frozenset[str]] = frozenset(
        {"macs", "latency", "parameters", "attention", "sequential"}
    )

    keep: float = 0.5
    importance: Literal["obs", "energy", "taylor", "l1", "l2", "random"] = "obs"
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
                f"channels: importance must be obs, energy, taylor, l1, l2 or random, "
                f"got {self.importance!r}"
            )
        if self.attention not in ("heads", "size"):
            raise RecipeError(f"channels: attention must be heads or size, got {self.attention!r}")

    def propose(self, model: Model, context: Context) -> Iterator[Proposal | Refusal]:
        """One row a group with the share asked for, then up to three milder ones."""
        suited: list[tuple[Group, Channels]] = []
        for found in channel_groups(model, context.shapes, self.attention):
            tuned = _tuned(self, model, found, context)
            if tuned is None:
                continue
            reason = found.reason if isinstance(found, Barrier) else _refusal(found, tuned, context)
            if reason or isinstance(found, Barrier):
                targets = found.id if isinstance(found, Barrier) else _makers(found)
                yield from (Refusal(target, self.name, reason) for target in targets)
            else:
                suited.append((found, tuned))
        scores = _sensitivities(model, suited, context)
        choices = [
            Choice.of(group, self.name, t.keep, t.importance, context, scores.get(group.id))
            for group, t in suited
        ]
        asked = [choice.least for choice in choices]
        limits = {name: getattr(self, name) for name in ("macs", "latency", "parameters")}
        given = {name: share for name, share in limits.items() if share is not None}
        if given and choices:
            every = _allocated(self, model, choices, given, context)
            asked = [min(counts) for counts in zip(*every, strict=True)]
        yield from rows_of(model, choices, asked, context)

    def apply(self, model: Model, chosen: Sequence[Proposal], context: Context) -> None:
        """Cut, and refit the layers that lose inputs and those behind them, one after the other.

        Where that can't be done, or brings nothing, the layers that lose inputs are refitted
        before the cut, each on what it read so far.
        """
        groups = _groups(self, model, context)
        wanted = {tuple(row.details["group"]): row.details["kept"] for row in chosen}
        kept = {key: _checked(key, groups.get(key), given) for key, given in wanted.items()}
        outputs = output_names(model)
        stays = staying([(groups[key], indices) for key, indices in kept.items()])
        losses = {
            part.layer.id: Loss(part.layer, columns_on(part.layer, stays[part.layer.id][part.axis]))
            for key in kept
            for part in groups[key].touched
            if part.role == "consumes"
        }
        if self.sequential and context.statistics is not None and len(context.feeds) > 1:
            rows = {
                layer.id: rows_left(layer, stays[layer.id])
                for key in kept
                for layer in groups[key].layers
            }
            original = comparable(context.reference, model).copy()
            twin = model.copy()
            _cut(self, twin, kept, context)
            if refit_in_order(
                twin, original, frozenset(losses), rows, context.feeds, outputs, context.seed
            ):
                model.become(twin)
                return
        refit(model, list(losses.values()), context.statistics, outputs)
        # A refit may have brought biases that are to be cut as well.
        _cut(self, model, kept, context)


def _cut(
    method: Channels, model: Model, kept: Mapping[tuple[str, ...], Indices], context: Context
) -> None:
    groups = _groups(method, model, context)
    cut_channels(model, [(groups[key], indices) for key, indices in kept.items()])


def _groups(method: Channels, model: Model, context: Context) -> dict[tuple[str, ...], Group]:
    found = channel_groups(model, context.shapes, method.attention)
    return {group.id: group for group in found if isinstance(group, Group)}


def _sensitivities(
    model: Model, suited: Sequence[tuple[Group, Channels]], context: Context
) -> dict[tuple[str, ...], NDArray[np.float64]]:
    """Scores by gradients, for the groups that ask for them."""
    wanted = [group for group, tuned in suited if tuned.importance == "taylor"]
    if not wanted:
        return {}
    if not context.feeds:
        raise RecipeError("channels: importance taylor needs samples, none are given")
    # It takes PyTorch, which nothing else here does.
    from onnxslim_tk.train.sensitivity import taylor

    return taylor(model, wanted, context.feeds, context.seed)


def _makers(group: Group) -> tuple[str, ...]:
    return tuple(layer.id for layer in group.producers)


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


def _refusal(group: Group, tuned: Channels, context: Context) -> str:
    step = step_of(group, context)
    if group.count <= step:
        return f"{group.count} channels are no more than one step of {step}"
    if kept_count(group.count, tuned.keep, step) >= group.count:
        return f"keep {tuned.keep:g} leaves all {group.count} channels, rounded to steps of {step}"
    for layer in group.layers:
        if not np.isfinite(layer.weight).all():
            return f"the weight of '{layer.id}' holds values that are not finite"
    return ""


def _allocated(
    method: Channels,
    model: Model,
    choices: Sequence[Choice],
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
    method: Channels, model: Model, choices: Sequence[Choice], context: Context
) -> list[float]:
    """What the readers' relative error of each group weighs at the model's outputs."""
    apart = held_out(model, context, method.observes)
    if apart is None:
        return [1.0] * len(choices)
    found = []
    for choice in choices:
        # About a third less: what breaks the model tells little of what doesn't.
        count = choice.counts[-(-len(choice.counts) // 3)]
        row = choice.row(count)

        def cut(twin: Model, row: Proposal = row) -> None:
            method.apply(twin, [row], apart.context)

        error = apart.probe.error(cut)
        own = missed(choice.group, choice.kept(count), apart.context.statistics, apart.shown)
        own = choice.error(count) if own is None else own
        found.append(min(error, 1e9) / own if own > 0 else 1.0)
    return found


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
