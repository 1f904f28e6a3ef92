"""Rows of cuts of channels: what each saves of bytes, multiply-accumulates and time."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxslim_tk.graph.edit import output_names, values_of
from onnxslim_tk.graph.layers import layers
from onnxslim_tk.graph.model import Model
from onnxslim_tk.packing import packed_bytes
from onnxslim_tk.plan.allocation import Figures
from onnxslim_tk.plan.proposal import Context, Proposal
from onnxslim_tk.recover.bias import moments_of, shift_bytes
from onnxslim_tk.recover.choices import Choice, milder

Array = NDArray[Any]
Indices = NDArray[np.int64]


def rows_of(
    model: Model, choices: Sequence[Choice], asked: Sequence[int], context: Context
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
        for count in (least, *milder(least, choice.group.count, choice.step)):
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
    choice: Choice,
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
