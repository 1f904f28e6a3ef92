"""Operators that do less: smaller kernels, and Relu in the place of smooth activations."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from onnxslim_tk.errors import RecipeError
from onnxslim_tk.graph.edit import drop_unused, output_names
from onnxslim_tk.graph.layers import Layer, layers
from onnxslim_tk.graph.model import Model
from onnxslim_tk.graph.operator_changes import (
    Smooth,
    inner_taps,
    kernel_of,
    shrink_kernel,
    smooth_activations,
    to_relu,
)
from onnxslim_tk.packing import packed_bytes
from onnxslim_tk.plan.proposal import Context, Observable, Proposal, Refusal
from onnxslim_tk.plan.targets import Work
from onnxslim_tk.plan.work import layer_work
from onnxslim_tk.recover.in_order import comparable, refit_each, refit_in_order
from onnxslim_tk.recover.narrowing import Loss, refit
from onnxslim_tk.recover.rewrites import Rewrite, bearable

Mask = NDArray[np.bool_]
_SMALLEST = 64
# Samples that readers of a changed activation are refitted on where it is tried.
_TRIED = 16


@dataclass(frozen=True, slots=True)
class Operators:
    """Operators change to ones that take less time, where the outputs bear it.

    ``kernels``: those of 5 lose their outermost taps and become 3, those of 7 become 5, and the
    taps that stay are refitted. ``activations``: HardSwish and SiLU become Relu, and the layers
    that read them are refitted. Each change is tried alone and in the order of what it costs; they
    are made as long as the model's outputs miss no more than ``max_error``, the relative squared
    error on samples. At last all layers behind the first change are refitted one after the other,
    unless ``recover`` is off. Takes samples.
    """

    name: ClassVar[str] = "operators"
    main: ClassVar[str] = "max_error"
    observes: ClassVar[frozenset[Observable]] = frozenset({"mean", "covariance"})
    whole: ClassVar[frozenset[str]] = frozenset({"recover"})

    max_error: float = 0.01
    kernels: bool = True
    activations: bool = True
    recover: bool = True

    def __post_init__(self) -> None:
        if not self.max_error >= 0:
            raise RecipeError(f"operators: max_error must be 0 or more, got {self.max_error}")

    def propose(self, model: Model, context: Context) -> Iterator[Proposal | Refusal]:
        """One row a change that the outputs bear."""
        rewrites: list[Rewrite] = []
        for layer in layers(model):
            tuned, stays = context.tuned(self, layer.names), inner_taps(layer)
            if tuned is None or not tuned.kernels or stays is None or layer.path:
                continue
            row, reason = _smaller(layer, stays, context), layer.obstacle(_SMALLEST)
            if reason or row.cost_saved <= 0:
                yield Refusal(layer.id, self.name, reason or "a smaller kernel saves no time")
            else:
                rewrites.append(_rewrite(self, row, tuned.max_error, context))
        for found in smooth_activations(model):
            around = [context.tuned(self, layer.names) for layer in (found.maker, *found.readers)]
            settings = [tuned for tuned in around if tuned is not None and tuned.activations]
            row = _plain(found, context)
            if len(settings) == len(around) and row.cost_saved > 0:
                most = min(tuned.max_error for tuned in settings)
                rewrites.append(_rewrite(self, row, most, context))
        yield from bearable(model, rewrites, context)

    def apply(self, model: Model, chosen: Sequence[Proposal], context: Context) -> None:
        """Make the chosen changes, and refit what comes behind the first."""
        original = comparable(context.reference, model).copy()
        # What is known of a layer's inputs no longer holds behind another change, but nearly.
        _change(model, chosen, context)
        if self.recover and len(context.feeds) > 1:
            changed = frozenset(
                target
                for row in chosen
                for target in (row.targets if row.setting != "Relu" else row.targets[1:])
            )
            outputs = output_names(model)
            refit_in_order(model, original, changed, {}, context.feeds, outputs, context.seed)


def _rewrite(method: Operators, row: Proposal, most: float, context: Context) -> Rewrite:
    feeds = context.feeds[-_TRIED:]

    def make(twin: Model) -> None:
        before = twin.copy()
        _change(twin, [row], context)
        if method.recover and row.setting == "Relu" and len(feeds) > 1:
            readers = frozenset(row.targets[1:])
            refit_each(twin, before, readers, {}, feeds, output_names(twin), context.seed)

    return Rewrite(row, make, most)


def _change(model: Model, chosen: Sequence[Proposal], context: Context) -> None:
    wanted = {row.targets: row for row in chosen}
    found = {
        layer.id: (layer, stays)
        for layer in layers(model)
        if (layer.id,) in wanted and (stays := inner_taps(layer)) is not None
    }
    losses = [
        Loss(layer, np.tile(stays.ravel(), layer.shape[1])) for layer, stays in found.values()
    ]
    smooth = {each.key: each for each in smooth_activations(model)}
    known = {*((name,) for name in found), *smooth}
    missing = next((key for key in wanted if key not in known), None)
    if missing is not None:
        raise RecipeError(f"operators: there is nothing to change at '{', '.join(missing)}'")
    refit(model, losses, context.statistics, output_names(model))
    for layer in list(layers(model)):
        if layer.id in found:
            shrink_kernel(model, layer, found[layer.id][1])
    for key, each in smooth.items():
        if key in wanted:
            to_relu(each)
    drop_unused(model)


def _smaller(layer: Layer, stays: Mask, context: Context) -> Proposal:
    """The row of a smaller kernel; it saves nothing where shapes are unknown."""
    share = float(stays.mean())
    work = layer_work(layer, context.shapes)
    kept = layer.weight[..., stays]
    macs, cost = 0, 0.0
    if work is not None:
        less: Work = replace(
            work,
            macs=round(work.macs * share),
            patches=round(work.patches * share),
            weights=round(work.weights * share),
        )
        macs = work.macs - less.macs
        cost = context.target.float_time(work) - context.target.float_time(less)
    return Proposal(
        (layer.id,),
        Operators.name,
        "x".join(map(str, kernel_of(stays))),
        bytes_saved=packed_bytes(layer.weight) - packed_bytes(np.ascontiguousarray(kept)),
        macs_saved=macs,
        cost_saved=cost,
    )


def _plain(found: Smooth, context: Context) -> Proposal:
    """The row of a Relu; a runtime takes it into the layer before it, so it costs nothing."""
    shape = context.shapes.get(found.node.outputs[0].name, ())
    size = int(np.prod(shape)) if shape else 0
    target = context.target
    cost = target.float_time(Work("HardSwish", size)) if size else 0.0
    if found.kind == "SiLU" and size:
        cost = target.float_time(Work("Sigmoid", size)) + target.float_time(Work("Mul", size))
    return Proposal(found.key, Operators.name, "Relu", cost_saved=cost)
