"""Choosing inputs that go by what the others can make up for: greedy elimination."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve

from onnxslim_tk.kernels.least_squares import damped

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]
# Blocks that go at once are told apart as if the others of the batch stayed.
_ROUNDS = 48
_SILENT = 1e-16


@dataclass(frozen=True, slots=True, eq=False)
class Reader:
    """A weight ``(n, d)`` that reads channels, and the covariance ``(d, d)`` of its inputs.

    Without a covariance inputs are taken to be white, and nothing makes up for another.
    Row k of ``blocks`` holds the columns that read channel k, -1 where it has fewer than others;
    ``power`` is what its output energy counts as.
    """

    matrix: NDArray[Any]
    covariance: NDArray[Any] | None
    blocks: Indices
    power: float


@dataclass(frozen=True, slots=True, eq=False)
class Elimination:
    """Channels in the order in which they go, and the error that has come of it each time.

    ``errors[k]`` is the sum over all readers of the squared change of the output over its power,
    once the first k + 1 of ``order`` are gone and the others make up for them.
    """

    order: Indices
    errors: Floats


def eliminate(readers: Sequence[Reader], least: Sequence[int], parts: Indices) -> Elimination:
    """Let channels go, those whose loss the others make up for best first.

    ``parts`` numbers the part of each channel; of part p at least ``least[p]`` stay. After each
    step the weights that are left are refitted (optimal brain surgeon, Hassibi and Stork, 1993,
    for blocks of columns).
    """
    count = len(parts)
    states = [_State(reader) for reader in readers]
    room = np.bincount(parts, minlength=len(least)) - np.asarray(least)
    batch = max(1, -(-int(np.maximum(room, 0).sum()) // _ROUNDS))
    left = np.ones(count, bool)
    order: list[int] = []
    errors: list[float] = []
    error = 0.0
    while True:
        able = np.flatnonzero(left & (room[parts] > 0))
        if not len(able):
            break
        costs = np.sum([state.costs(able) for state in states], axis=0) + np.zeros(len(able))
        picked: list[int] = []
        for k in np.argsort(costs, kind="stable"):
            channel = int(able[k])
            if len(picked) < batch and room[parts[channel]] > 0:
                picked.append(channel)
                room[parts[channel]] -= 1
        taken = sum(state.remove(np.array(picked)) for state in states)
        # Within a batch the error is taken to grow evenly.
        errors += [error + taken * (k + 1) / len(picked) for k in range(len(picked))]
        error += taken
        order += picked
        left[picked] = False
    return Elimination(np.array(order, np.int64), np.array(errors, np.float64))


class _State:
    """One reader while columns go: its weights, and the inverse of the covariance of the rest."""

    def __init__(self, reader: Reader) -> None:
        self._blocks = reader.blocks.copy()
        self._weights = np.array(reader.matrix, np.float64)
        # Of inputs that are always zero only what inverts their covariance is left.
        least = _SILENT * float(np.square(self._weights).sum())
        self._power = max(reader.power, least, 1e-300)
        self._inverse: Floats | None = None
        if reader.covariance is not None:
            normal = damped(reader.covariance, 1e-3)
            factor = cho_factor(normal, lower=True, check_finite=False)
            self._inverse = cho_solve(factor, np.eye(len(normal)), check_finite=False)

    def costs(self, channels: Indices) -> Floats:
        """What the loss of each of ``channels`` alone would cost."""
        blocks = self._blocks[channels]
        there = blocks >= 0
        safe = np.where(there, blocks, 0)
        weights = self._weights[:, safe] * there
        if self._inverse is None:
            return np.asarray(np.einsum("ncb,ncb->c", weights, weights) / self._power, np.float64)
        energy = np.einsum("ncb,ncd->cbd", weights, weights)
        inverse = self._inverse[safe[:, :, None], safe[:, None, :]]
        pairs = there[:, :, None] & there[:, None, :]
        # What isn't there is a direction of its own without weights.
        inverse = np.where(pairs, inverse, np.eye(blocks.shape[1]))
        solved = np.linalg.solve(inverse, energy)
        return np.asarray(np.einsum("cbb->c", solved) / self._power, np.float64)

    def remove(self, channels: Indices) -> float:
        """Let ``channels`` go, refit the others, and give what it cost."""
        gone = self._blocks[channels].ravel()
        return self.lose(gone[gone >= 0])

    def lose(self, gone: Indices) -> float:
        """The same for columns."""
        if not len(gone):
            return 0.0
        if self._inverse is None:
            return float(np.square(self._weights[:, gone]).sum()) / self._power
        weights, inverse = self._weights[:, gone], self._inverse[:, gone]
        factor = cho_factor(inverse[gone], lower=True, check_finite=False)
        change = cho_solve(factor, weights.T, check_finite=False).T
        cost = float(np.vdot(change, weights)) / self._power
        keep = np.ones(len(self._inverse), bool)
        keep[gone] = False
        rest = inverse[keep]
        self._weights = self._weights[:, keep] - change @ rest.T
        solved = cho_solve(factor, rest.T, check_finite=False)
        self._inverse = self._inverse[np.ix_(keep, keep)] - rest @ solved
        places = np.cumsum(keep) - 1
        stays = (self._blocks >= 0) & keep[np.maximum(self._blocks, 0)]
        self._blocks = np.where(stays, places[np.maximum(self._blocks, 0)], -1)
        return max(cost, 0.0)


def loss(reader: Reader, gone: Indices) -> float:
    """Squared change of a reader's output over its power without the channels ``gone``.

    What is left is refitted by least squares.
    """
    columns = reader.blocks[gone].ravel()
    return _State(reader).lose(columns[columns >= 0])
