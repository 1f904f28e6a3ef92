"""A layer's weight on a codebook: entries fitted to it, scales, and rounding with feedback."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from onnxslim_tk.graph.layers import Layer
from onnxslim_tk.kernels.codebook import (
    TOP,
    codebook,
    nearest_entries,
    on_integers,
    search_scales,
    storable_scales,
    vector_codebook,
)
from onnxslim_tk.kernels.grouped import feedback_variances
from onnxslim_tk.kernels.rounding import WEIGHT_BITS, largest_code, symmetric_scales
from onnxslim_tk.measure.moments import Moments
from onnxslim_tk.recover.damping import damping_for
from onnxslim_tk.recover.feedback import Codebook, Feedback, per_row_of, refitted_scales

Array = NDArray[Any]
Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]
Effort = Literal["quick", "normal", "thorough"]
_PRUNED: Final = 0.05
# Moments are summed in float32: a direction below this share of all energy is rounding noise.
_NOISE: Final = 1e-6
_ROUNDS: Final = {"quick": 0, "normal": 1, "thorough": 4}
# So many weights tell scales and error of a layer as well as all would. Entries need all: the
# outliers that some happen to hold would count too much.
_ENOUGH: Final = 1 << 19


def whole_grid(bits: int = WEIGHT_BITS) -> Codebook:
    """All values of a symmetric grid of ``bits`` bits, 2 to 8."""
    top = largest_code(bits)
    return Codebook(np.arange(-top, top + 1, dtype=np.float64), 0.0)


@dataclass(frozen=True, slots=True, eq=False)
class Foretold:
    """Values and scales that stand for ``times`` as many, and the error to expect of the layer."""

    values: Floats
    scales: NDArray[np.float32]
    times: float
    error: float


def is_pruned(weight: Array) -> bool:
    """Whether at least 5 % of a weight are exact zeros, which then have to stay zeros."""
    return bool(np.count_nonzero(weight == 0) >= _PRUNED * weight.size)


class CodebookFit:
    """Fits and applies codebooks to one layer.

    ``moments`` are those of the layer's inputs, or None. With ``centred`` errors count about their
    mean, which a shift of the bias will take off. ``target`` is a matrix to come near to instead of
    the layer's own. Matrices are ``(groups, rows, inputs)``; a
    channel is what one scale holds for.

    ``effort`` is ``quick``: nearest values, scales searched; ``normal``: values rounded column
    after column, so that the columns to come make up for the error (GPTQ, Frantar et al., 2022),
    then entries and scales refitted by least squares and every value rounded once more to what is
    best while all others stay (Behdin et al., 2023); ``thorough``: refitted and rounded again,
    four times. More than quick needs second moments, and vectors that stay in a row or a column.
    """

    def __init__(
        self,
        layer: Layer,
        moments: Moments | None,
        effort: Effort,
        centred: bool = False,
        target: Floats | None = None,
    ) -> None:
        self.layer = layer
        self._rounds = _ROUNDS[effort]
        self._second = None if moments is None else _spread(moments, centred)
        self._power = None if moments is None else moments.second
        self._count = 0 if moments is None else moments.count
        self.matrix: Floats = layer.matrix() if target is None else target
        self._rows = self._by_channel(self.matrix)
        # A channel of nothing but zeros has no scale, and must stay silent.
        self._silent: Mask = np.asarray(~self._rows.any(axis=1), np.bool_)
        pruned = is_pruned(layer.weight)
        self._fixed: Mask | None = self.matrix == 0 if pruned or self._silent.any() else None
        self._some = slice(None, None, max(1, layer.size // _ENOUGH))

    def fit(self, clusters: int, dimensions: int, scaled: bool, seed: int) -> Codebook:
        """At most ``clusters`` entries of ``dimensions`` values for the layer's weight.

        Of three entries one is 0.
        """
        if scaled and dimensions == 1 and clusters > 2 * TOP:
            return whole_grid()
        rows = self._rows / self._spreads[:, None] if scaled else self._rows
        if dimensions > 1:
            flat = self._from_channels(rows).reshape(-1, dimensions)
            entries = vector_codebook(flat, clusters, seed)
        else:
            shares = None if self._importance is None else np.sqrt(self._importance)
            entries = codebook(rows, clusters, shares, self._fixed is not None)
            if clusters == 3 and self._fixed is None:
                entries[np.abs(entries).argmin()] = 0.0
        if not scaled:
            return Codebook(entries.astype(np.float32).astype(np.float64), None)
        return Codebook(*on_integers(entries))

    def round(self, book: Codebook) -> tuple[Floats, NDArray[np.float32]]:
        """The weight as values of ``book``, in its own shape, and one scale per channel.

        The scales are ones where the codebook holds floats. Effort moves the entries of ``book``.
        """
        scales = self._scales(book)
        if self._feedback is None or not self._sweeps(book):
            return self._finished(book, self._nearest(book, scales), scales)
        values, scales = self._feedback.rounded(book, scales, self._rounds)
        stored = self.layer.from_matrix(values)
        if book.unit is None:
            return stored, np.ones(len(scales), np.float32)
        return stored, storable_scales(scales)

    def foretell(self, book: Codebook) -> Foretold:
        """About what :meth:`round` gives: nearest values, and the error to expect.

        The error is the relative squared one of the layer's output. No sweep is run for it: the
        covariance tells how much of a rounding error later columns can take back. Some channels
        stand for all of a large layer.
        """
        sweeps, single = self._sweeps(book), book.entries.ndim == 1
        if not sweeps and (self._second is not None or not single):
            return self._foretold_exactly(book)
        # Vectors run along the stored weight, through all channels.
        some = self._some if single else slice(None)
        rows, scales = self._rows[some], self._scales(book, some)
        if single:
            values = nearest_entries(rows / scales[:, None], book.entries)
            values = values if self._fixed is None else np.where(rows == 0, 0.0, values)
        else:
            values = self._by_channel(self._nearest(book, scales))
        if not sweeps and book.unit is not None:
            meets, norm = (rows * values).sum(1), (values**2).sum(1)
            scales = np.divide(meets, norm, out=scales, where=norm > 0)
        squares = (rows - values * scales[:, None]) ** 2
        if sweeps:
            if self._fixed is not None and rows.any():
                # Feedback moves pruned weights too, and brings them back to zero.
                squares[rows == 0] = squares[rows != 0].mean()
            squares *= self._variances[some]
        times = len(self._rows) / max(len(rows), 1)
        if times == 1.0:
            values = self._from_channels(values)
        return Foretold(values, storable_scales(scales), times, self._share(squares.sum() * times))

    def _foretold_exactly(self, book: Codebook) -> Foretold:
        searched = self._scales(book)
        values, scales = self._finished(book, self._nearest(book, searched), searched)
        change = self.matrix - self.rebuilt(values, scales)
        pull = change if self._second is None else change @ self._second
        return Foretold(values, scales, 1.0, self._share(float(np.vdot(pull, change))))

    def _share(self, noise: float) -> float:
        """``noise`` over the power of the layer's output."""
        return max(float(noise), 0.0) / self._whole if self._whole > 0 else 0.0

    @cached_property
    def _whole(self) -> float:
        product = self.matrix if self._power is None else self.matrix @ self._power
        return float(np.vdot(product, self.matrix))

    def rebuilt(self, values: Floats, scales: Array) -> Floats:
        """What ``values`` and ``scales`` stand for, as a matrix."""
        per_row = per_row_of(self.layer, scales.astype(np.float64))
        return np.asarray(self.layer.to_matrix(values) * per_row[:, :, None], np.float64)

    def sweeps_vectors(self, width: int) -> bool:
        """Whether vectors of ``width`` values get error feedback, not just the nearest entries."""
        return self._sweeps(Codebook(np.zeros((1, width)), None))

    def _sweeps(self, book: Codebook) -> bool:
        return self._rounds > 0 and self._feedback is not None and self._feedback.fits(book)

    def _finished(
        self, book: Codebook, values: Floats, scales: Floats
    ) -> tuple[Floats, NDArray[np.float32]]:
        stored = self.layer.from_matrix(values)
        if book.unit is None:
            return stored, np.ones(len(scales), np.float32)
        return stored, storable_scales(
            refitted_scales(self.layer, self.matrix, values, scales, self._second)
        )

    @cached_property
    def _feedback(self) -> Feedback | None:
        if self._second is None:
            return None
        return Feedback(self.layer, self.matrix, self._fixed, self._second, self._damping)

    @cached_property
    def _damping(self) -> float:
        assert self._second is not None
        return damping_for(self._second, self._count)

    @cached_property
    def _variances(self) -> Floats:
        """What a squared error of each weight costs after feedback, ``(channels, weights)``."""
        assert self._second is not None
        # The estimate of the true covariance has the trace of the seen one.
        variances = feedback_variances(self._second, self._damping) / (1 + self._damping)
        return self._by_channel(np.broadcast_to(variances[:, None, :], self.matrix.shape))

    @cached_property
    def _spreads(self) -> Floats:
        """Root mean square of each channel's weights, fixed zeros not counted."""
        counts = np.full(len(self._rows), self._rows.shape[1])
        if self._fixed is not None:
            counts = np.count_nonzero(self._rows, axis=1)
        spreads = np.sqrt((self._rows**2).sum(1) / np.maximum(counts, 1))
        return np.where(self._silent, 1.0, spreads)

    @cached_property
    def _importance(self) -> Floats | None:
        """How much an error of each weight counts, ``(channels, weights)``."""
        if self._second is None:
            return None
        if self._rounds:
            power = self._variances
        else:
            diagonal = np.diagonal(self._second, axis1=1, axis2=2)
            power = self._by_channel(np.broadcast_to(diagonal[:, None, :], self.matrix.shape))
        # An input that the samples left silent still counts a little.
        return power / max(float(power.mean()), 1e-30) + 1e-3

    def _scales(self, book: Codebook, some: slice = slice(None)) -> Floats:
        rows = self._rows[some]
        if book.unit is None:
            return np.ones(len(rows))
        if book.unit == 0.0:
            return symmetric_scales(rows, int(book.entries[-1]).bit_length() + 1)
        scales = np.where(self._silent[some], 1.0, self._spreads[some] * book.unit)
        if book.entries.ndim > 1:
            # No entry need be all zeros.
            return np.where(self._silent[some], np.finfo(np.float16).tiny, scales)
        weights = None if self._importance is None else self._importance[some]
        return search_scales(rows, book.entries, scales, weights)

    def _nearest(self, book: Codebook, scales: Floats) -> Floats:
        # Vectors run along the stored weight, whatever its layout.
        stored = self._from_channels(self._rows / scales[:, None])
        values = self.layer.to_matrix(nearest_entries(stored, book.entries))
        if self._fixed is None or book.entries.ndim > 1:
            return values
        return np.where(self._fixed, 0.0, values)

    def _by_channel(self, matrix: Array) -> Floats:
        rows = self.layer.by_channel(self.layer.from_matrix(matrix))
        return np.ascontiguousarray(rows, np.float64)

    def _from_channels(self, rows: Floats) -> Floats:
        return np.asarray(self.layer.from_channels(rows), np.float64)


def _spread(moments: Moments, centred: bool) -> Floats | None:
    """The covariance, about the mean or about zero."""
    second = moments.second
    if second is None or not centred:
        return second
    spread = second - np.einsum("gi,gj->gij", moments.mean, moments.mean)
    floor = _NOISE * np.trace(second, axis1=1, axis2=2)
    diagonal = np.arange(second.shape[1])
    spread[:, diagonal, diagonal] += floor[:, None]
    return np.asarray(spread, np.float64)
