"""Which channels count: scores of channels, and the errors where the lowest go first."""

from collections.abc import Sequence
from typing import Any
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from onnxslim_tk.graph.groups import Group
from onnxslim_tk.kernels.elimination import Elimination, Reader, loss

Array = NDArray[Any]
Indices = NDArray[np.int64]
_SEEN = 8


def importance(
    group: Group, readers: Sequence[Reader], kind: str, seed: int
) -> NDArray[np.float64]:
    """How much each channel of a group counts: ``energy``, ``l1``, ``l2`` or ``random``."""
    if kind == "random":
        rng = np.random.default_rng([seed, crc32("\n".join(group.id).encode())])
        return rng.random(group.count)
    if kind == "energy":
        return np.asarray(np.sum([_energies(reader) for reader in readers], axis=0), np.float64)
    total = np.zeros(group.count)
    for part in group.touched:
        if part.role == "produces":
            on = group.channels_on(part.labels)
            rows = np.moveaxis(part.layer.weight, part.axis, 0).reshape(len(on), -1)
            sizes = np.abs(rows) if kind == "l1" else np.square(rows, dtype=np.float64)
            sums = np.bincount(on[on >= 0], sizes.sum(1)[on >= 0], group.count)
            norms = sums if kind == "l1" else np.sqrt(sums)
            # Each maker has the same say, whatever the scale of its weights.
            total += norms / (norms.mean() or 1.0)
    return total


def _energies(reader: Reader) -> NDArray[np.float64]:
    """Share of a reader's output variance that each channel brings, as if none were correlated."""
    matrix = np.asarray(reader.matrix, np.float64)
    energies = np.zeros(len(reader.blocks))
    for k, block in enumerate(reader.blocks):
        columns = block[block >= 0]
        part = matrix[:, columns]
        own = (
            part
            if reader.covariance is None
            else part @ reader.covariance[np.ix_(columns, columns)]
        )
        energies[k] = np.vdot(own, part)
    return np.maximum(energies, 0.0) / (reader.power or 1.0)


def by_scores(
    readers: Sequence[Reader], scores: Array, floors: Sequence[int], parts: Indices
) -> Elimination:
    """Channels of the lowest scores go first; errors are those after a refit."""
    room = np.bincount(parts, minlength=len(floors)) - np.asarray(floors)
    order: list[int] = []
    for channel in np.argsort(scores, kind="stable").tolist():
        if room[parts[channel]] > 0:
            order.append(channel)
            room[parts[channel]] -= 1
    marks = sorted({max(1, round(len(order) * k / _SEEN)) for k in range(1, _SEEN + 1)})
    gone = np.array(order, np.int64)
    seen = [sum(loss(reader, gone[:mark]) for reader in readers) for mark in marks]
    errors = np.interp(np.arange(1, len(order) + 1), [0, *marks], [0.0, *seen])
    return Elimination(gone, errors)
