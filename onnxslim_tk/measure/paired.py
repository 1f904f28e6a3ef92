"""Moments of layer inputs in two models side by side: one that lost something, and what it was."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxslim_tk.graph.layers import Layer
from onnxslim_tk.graph.model import Model
from onnxslim_tk.measure.moments import row_limit
from onnxslim_tk.measure.observe import fetch
from onnxslim_tk.measure.padding import Steps, real_rows, real_steps
from onnxslim_tk.measure.rows import input_rows, row_width
from onnxslim_tk.measure.runtime import Feed

Array = NDArray[Any]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class PairedMoments:
    """Moments of a layer's input rows ``x`` in one model, and of what they lost of rows ``r``.

    Over ``count`` rows: ``mean`` and ``reference`` are the means ``(groups, inputs)`` of x and of
    the reference's r, ``second`` is the uncentred ``E[x x^T]``, ``lost`` is ``E[(r - x) x^T]``,
    both ``(groups, inputs, inputs)``.
    """

    count: int
    mean: Floats
    reference: Floats
    second: Floats
    lost: Floats


def observe_pairs(
    model: Model,
    reference: Iterable[Mapping[str, Array]],
    wanted: Sequence[Layer],
    feeds: Sequence[Feed],
    seed: int,
) -> dict[str, PairedMoments]:
    """Run ``feeds`` through ``model``; moments of the inputs of the layers ``wanted``, by id.

    ``reference`` gives what the same tensors hold in the reference, by name, for each feed. A layer
    whose input is not finite, or has another shape in the reference, has none.
    """
    jobs = [_Pair(layer, len(feeds), seed + k) for k, layer in enumerate(wanted)]
    names = list(dict.fromkeys(job.layer.input.name for job in jobs))
    both = zip(fetch(model, names, feeds), reference, strict=True)
    for feed, (values, before) in zip(feeds, both, strict=True):
        real = real_steps(feed)
        for job in jobs:
            name = job.layer.input.name
            job.add(values[name], before[name], real)
    return {job.layer.id: job.moments() for job in jobs if job.count}


class _Pair:
    """Accumulates the moments of one layer's input rows in both models."""

    def __init__(self, layer: Layer, feeds: int, seed: int) -> None:
        self.layer = layer
        self.cap = row_limit(layer, feeds)
        self.seed = seed
        self.count = 0
        width = row_width(layer)
        self.total: Floats = np.zeros((layer.groups, width))
        self.before: Floats = np.zeros((layer.groups, width))
        self.shift: Array = np.zeros((layer.groups, 1, width), np.float32)
        self.second: Floats = np.zeros((layer.groups, width, width))
        self.lost: Floats = np.zeros((layer.groups, width, width))

    def add(self, values: Array, before: Array, real: Steps | None) -> None:
        values, before = (real_rows(self.layer, v, real) for v in (values, before))
        if values.dtype != np.float32 or values.shape != before.shape or not values.size:
            return
        if not (np.isfinite(values).all() and np.isfinite(before).all()):
            return
        # The same places in both.
        rows, were = (
            input_rows(self.layer, v, self.cap, np.random.default_rng((self.seed, self.count)))
            for v in (values, before)
        )
        # About a point near the mean, or float32 would lose the spread beside it.
        if not self.count:
            self.shift = rows.mean(axis=1, keepdims=True, dtype=np.float64).astype(np.float32)
        self.count += rows.shape[1]
        self.total += rows.sum(1, dtype=np.float64)
        self.before += were.sum(1, dtype=np.float64)
        lost, rows = were - rows, rows - self.shift
        self.second += np.matmul(rows.transpose(0, 2, 1), rows)
        self.lost += np.matmul(lost.transpose(0, 2, 1), rows)

    def moments(self) -> PairedMoments:
        mean, before = self.total / self.count, self.before / self.count
        shift = self.shift[:, 0].astype(np.float64)
        cross = np.einsum("gi,gj->gij", shift, mean - shift / 2)
        second = self.second / self.count + cross + cross.transpose(0, 2, 1)
        lost = self.lost / self.count + np.einsum("gi,gj->gij", before - mean, shift)
        return PairedMoments(self.count, mean, before, second, lost)
