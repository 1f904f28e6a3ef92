"""The relaxation: all options of a weight at once, each by a share that gradients move."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from onnxslim_tk.graph.layers import layers
from onnxslim_tk.graph.model import Model
from onnxslim_tk.measure.probe import scores_behind
from onnxslim_tk.measure.runtime import Feed
from onnxslim_tk.pipeline.attempt import Workshop
from onnxslim_tk.pipeline.stages import Begun
from onnxslim_tk.pipeline.stepping import lossless
from onnxslim_tk.plan.proposal import Pass, Proposal
from onnxslim_tk.plan.recipe import Stage
from onnxslim_tk.search.extra import one_torch_thread
from onnxslim_tk.search.extra import torch as torch_library
from onnxslim_tk.search.forecast import Forecaster
from onnxslim_tk.search.space import Space

_FEEDS: Final = 8
_RATE: Final = 0.15
_WARM: Final = 1.0
_COLD: Final = 0.2
_TINY: Final = 1e-12
# Values of all changes that are held at once.
_MOST_VALUES: Final = 50_000_000

Shifts = dict[str, dict[tuple[int, int], NDArray[np.float32]]]
"""By stored tensor: what each option of a gene, by gene and level, adds to its values."""


@dataclass(frozen=True, slots=True)
class Leaning:
    """A trade-off: the price, as error, of all bytes times ``size``, of all time times ``time``."""

    price: float
    size: float
    time: float
    seed: int = 0
    steps: int = 60


def relax(shop: Workshop, space: Space, leanings: Sequence[Leaning]) -> list[list[list[float]]]:
    """Shares of all levels of all genes, for each of ``leanings``.

    Levels of a gene share one Softmax with Gumbel noise that cools (Jang, Gu and Poole, 2017), and
    the loss is the relative squared error of the outputs plus the expected price (as in DARTS, Liu
    et al., 2019, and FBNet, Wu et al., 2019). Options that only change a weight's values act in
    the graph itself; those that change its form count with the error that was measured of them
    alone. Raises TrainingError where the graph can't be trained, RecipeError without PyTorch.
    """
    with one_torch_thread():
        assert shop.parts is not None
        collect = _Shifts(space)
        base = shop.attempt(collect, 0).model
        samples = shop.parts.calibrate.feeds
        feeds = [samples[k] for k in range(min(_FEEDS, len(samples)))]
        relaxation = _Relaxation(base, space, collect.matching(base), feeds)
        return [relaxation.solved(leaning) for leaning in leanings]


class _Shifts:
    """A chooser that loses nothing and notes what options do to weights."""

    def __init__(self, space: Space) -> None:
        self._space = space
        self._found: Shifts = {}
        self._before: dict[str, NDArray[np.float32]] = {}
        self._values = 0

    def __call__(
        self, stage: Stage, proposals: Sequence[Proposal], model: Model, begun: Begun
    ) -> list[Proposal]:
        """The lossless rows of the stage."""
        methods: dict[str, Pass] = {method.name: method for method in stage.passes}
        rows = {(p.method, p.targets, p.setting): p for p in proposals}
        known = {layer.id: layer for layer in layers(model) if layer.is_dense}
        for k, gene in enumerate(self._space.genes):
            if gene.stage != stage.name or not all(target in known for target in gene.targets):
                continue
            for level, option in enumerate(gene.options, start=1):
                row = rows.get((option.method, option.targets, option.setting))
                # What takes multiply-accumulates away changes the form, not the values.
                if row is not None and not row.macs_saved and self._values < _MOST_VALUES:
                    twin = model.copy()
                    context = replace(begun.context, feeds=())
                    methods[row.method].apply(twin, [row], context)
                    self._note((k, level), row, known, twin)
        return lossless(stage, proposals, model, begun)

    def _note(
        self, place: tuple[int, int], row: Proposal, before: Mapping[str, Any], twin: Model
    ) -> None:
        after = {layer.id: layer for layer in layers(twin)}
        for target in row.targets:
            layer, other = before[target], after.get(target)
            if other is None or other.weight.shape != layer.weight.shape:
                continue
            key = layer.path + layer.stored.name
            self._before[key] = layer.weight
            self._found.setdefault(key, {})[place] = other.weight - layer.weight
            self._values += layer.size

    def matching(self, base: Model) -> Shifts:
        """Those that were found on the very weights that ``base`` has."""
        weights = {layer.path + layer.stored.name: layer.weight for layer in layers(base)}
        return {
            key: shifts
            for key, shifts in self._found.items()
            if key in weights and np.array_equal(weights[key], self._before[key])
        }


class _Relaxation:
    """A model in PyTorch with shares of options in place of choices."""

    def __init__(self, base: Model, space: Space, shifts: Shifts, feeds: Sequence[Feed]) -> None:
        from onnxslim_tk.train.batches import joins_well
        from onnxslim_tk.train.module import GraphModule

        self._torch = torch = torch_library()
        self._space, self._forecaster = space, Forecaster(space)
        self._module = GraphModule(base)
        for parameter in self._module.parameters():
            parameter.requires_grad_(False)
        joins = self._module.joins and joins_well(self._module, feeds)
        self._feeds = _joined(feeds) if joins else list(feeds)
        floats = [t for t in base.graph.outputs if t.dtype in (np.float32, np.float16)]
        self._names = [[t.name, *([s[0]] if (s := scores_behind(t)) else [])] for t in floats]
        wanted = [name for names in self._names for name in names]
        with torch.no_grad():
            self._taught = [self._module(feed, wanted) for feed in self._feeds]
        self._shifts: dict[int, dict[tuple[int, int], Any]] = {}
        self._inside: set[tuple[int, int]] = set()
        for key, found in shifts.items():
            if key in self._module.ties:
                number = self._module.ties[key].weight
                tensors = {place: torch.from_numpy(shift) for place, shift in found.items()}
                self._shifts.setdefault(number, {}).update(tensors)
                self._inside |= tensors.keys()
        self._bases = {n: self._module.weights[n].dense().detach() for n in self._shifts}

    def solved(self, leaning: Leaning) -> list[list[float]]:
        """The shares at the end of the descent for one trade-off."""
        torch = self._torch
        sizes = self._space.sizes
        random = torch.Generator().manual_seed(leaning.seed)
        logits = [torch.zeros(size, requires_grad=True) for size in sizes]
        if not logits:
            return []
        optimizer = torch.optim.Adam(logits, lr=_RATE)
        for step in range(leaning.steps):
            heat = _WARM * (_COLD / _WARM) ** (step / max(leaning.steps - 1, 1))
            shares = [self._drawn(row, heat, random) for row in logits]
            feed = step % len(self._feeds)
            loss = self._error(shares, feed) + self._price(shares, leaning)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        return [torch.softmax(row, 0).tolist() for row in logits]

    def _drawn(self, logits: Any, heat: float, random: Any) -> Any:
        torch = self._torch
        uniform = torch.rand(logits.shape, generator=random).clamp(_TINY, 1 - 1e-7)
        return torch.softmax((logits - torch.log(-torch.log(uniform))) / heat, 0)

    def _error(self, shares: Sequence[Any], number: int) -> Any:
        torch = self._torch
        wanted = [name for names in self._names for name in names]
        self._mix(shares)
        values = self._module(self._feeds[number], wanted)
        total = torch.zeros(())
        for names in self._names:
            logs = []
            for name in names:
                before = self._taught[number][name]
                noise = torch.square(values[name] - before).sum()
                logs.append(torch.log((noise + _TINY) / (torch.square(before).sum() + _TINY)))
            total = total + torch.exp(torch.stack(logs).mean()) / len(self._names)
        outside = [
            share * min(self._forecaster.error(k, level), 10.0)
            for k, row in enumerate(shares)
            for level, share in enumerate(row)
            if level and (k, level) not in self._inside
        ]
        return total + sum(outside)

    def _mix(self, shares: Sequence[Any]) -> None:
        """Let weights be their values plus what options would change, each by its share."""
        for number, shifts in self._shifts.items():
            dense = self._bases[number]
            for (k, level), shift in shifts.items():
                dense = dense + shares[k][level] * shift.reshape(dense.shape)
            self._module.weights[number].dense = partial(_same, dense)

    def _price(self, shares: Sequence[Any], leaning: Leaning) -> Any:
        """The expected price of what is left, by the forecast's rules."""
        torch = self._torch
        expected = []
        for k, row in enumerate(shares):
            effects = self._forecaster.effects(k)
            table = torch.tensor([[e.size, e.macs, e.time] for e in effects])
            expected.append(row @ table)
        extents = self._space.extents
        total_bytes = sum(e.bytes for e in extents.values()) or 1
        total_time = sum(e.time for e in extents.values()) or 1.0
        size = time = torch.zeros(())
        for name, extent in extents.items():
            narrow = kept = torch.ones(())
            formats = [torch.zeros(3)]
            for k in self._forecaster.genes_of(name):
                if any(effect.macs for effect in self._forecaster.effects(k)):
                    narrow = narrow * (1 - expected[k][0])
                    kept = kept * (1 - expected[k][1])
                else:
                    formats.append(expected[k])
            strongest = torch.stack(formats).amax(0)
            size = size + extent.bytes / total_bytes * narrow * (1 - strongest[0])
            time = time + extent.time / total_time * kept * (1 - strongest[2])
        return leaning.price * (leaning.size * size + leaning.time * time)


def _same(value: Any) -> Any:
    return value


def _joined(feeds: Sequence[Feed]) -> list[Feed]:
    """All feeds as one where their shapes allow it."""
    shapes = {tuple((name, np.shape(v)) for name, v in sorted(feed.items())) for feed in feeds}
    if len(shapes) > 1:
        return list(feeds)
    return [{n: np.concatenate([np.asarray(f[n]) for f in feeds]) for n in feeds[0]}]
