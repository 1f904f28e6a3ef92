"""Allocation: how far each of several things is reduced, so that a figure of the whole is met."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from onnxslim_tk.graph.layer import Layer
from onnxslim_tk.plan.targets import Target, Work
from onnxslim_tk.plan.work import Shapes, layer_work

Shares = Mapping[str, Mapping[int, float]]
"""By layer id: the share of the weight's entries that goes on each axis."""


@dataclass(frozen=True, slots=True, eq=False)
class Ladder:
    """Steps from nothing on: the error of each, and what goes of which layers' weights."""

    errors: Sequence[float]
    shares: Sequence[Shares]


class Figures:
    """Multiply-accumulates, time and weights of a model's layers when parts of them go."""

    def __init__(self, layers: Sequence[Layer], shapes: Shapes, target: Target) -> None:
        self._works = {layer.id: layer_work(layer, shapes) for layer in layers}
        self._layers = {layer.id: layer for layer in layers}
        self._target = target

    def macs(self, name: str, gone: Mapping[int, float]) -> float:
        """Multiply-accumulates of one run."""
        work = self._works[name]
        return 0.0 if work is None else work.macs * _left(gone)

    def parameters(self, name: str, gone: Mapping[int, float]) -> float:
        """Weights."""
        return self._layers[name].size * _left(gone)

    def latency(self, name: str, gone: Mapping[int, float]) -> float:
        """Microseconds by the target's table."""
        work, layer = self._works[name], self._layers[name]
        if work is None:
            return 0.0
        made = 1 - gone.get(layer.channel_axis, 0.0)
        read = _left(gone) / made if made else 0.0
        groups = round(work.groups * made) if work.is_depthwise else work.groups
        channels = max(1, round(work.channels[0] * read)), max(1, round(work.channels[1] * made))
        return self._target.float_time(
            Work(
                work.kind,
                round(work.outputs * made),
                round(work.macs * made * read),
                round(work.patches * (made if work.is_depthwise else read)),
                round(work.weights * made * read),
                channels,
                max(1, groups),
            )
        )


def allocate(
    ladders: Sequence[Ladder],
    figure: Callable[[str, Mapping[int, float]], float],
    layers: Sequence[str],
    share: float,
) -> list[int]:
    """The step of each ladder at which the sum of ``figure`` over ``layers`` falls to ``share``.

    Step after step the one of least error for what it saves, jumps over several among them, as a
    knapsack's relaxation has it (Sinha and Zoltners, 1979); what one saves is seen beside what the
    others have saved. Where so much can't be saved, all that can.
    """
    steps = [0] * len(ladders)
    gone: dict[str, dict[int, float]] = {name: {} for name in layers}
    total = sum(figure(name, {}) for name in layers)
    left = total
    while left > share * total:
        best: tuple[float, int, int, float] | None = None
        for k, ladder in enumerate(ladders):
            for step in range(steps[k] + 1, len(ladder.errors)):
                saved = _saved(ladder, steps[k], step, gone, figure)
                cost = ladder.errors[step] - ladder.errors[steps[k]]
                # What is saved beyond the need is worth nothing.
                worth = min(saved, left - share * total)
                if saved > 0 and (best is None or cost / worth < best[0]):
                    best = cost / worth, k, step, saved
        if best is None:
            break
        _, k, step, saved = best
        for name, axes in _changes(ladders[k], steps[k], step).items():
            for axis, change in axes.items():
                gone[name][axis] = gone[name].get(axis, 0.0) + change
        steps[k] = step
        left -= saved
    return steps


def _changes(ladder: Ladder, here: int, there: int) -> Shares:
    before, after = ladder.shares[here], ladder.shares[there]
    return {
        name: {axis: share - before.get(name, {}).get(axis, 0.0) for axis, share in axes.items()}
        for name, axes in after.items()
    }


def _saved(
    ladder: Ladder,
    here: int,
    there: int,
    gone: Mapping[str, Mapping[int, float]],
    figure: Callable[[str, Mapping[int, float]], float],
) -> float:
    saved = 0.0
    for name, axes in _changes(ladder, here, there).items():
        after = {**gone[name], **{a: gone[name].get(a, 0.0) + c for a, c in axes.items()}}
        saved += figure(name, gone[name]) - figure(name, after)
    return saved


def _left(gone: Mapping[int, float]) -> float:
    left = 1.0
    for share in gone.values():
        left *= 1 - share
    return left
