"""A layer's weight on a codebook: entries fitted to it, scales, and rounding with feedback."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from onnxslim_tk.graph.layers import Layer
from onnxslim_tk.kernels.cluster import nearest
from onnxslim_tk.kernels.codebook import (
    TOP,
    codebook,
    nearest_entries,
    on_integers,
    search_scales,
    storable_scales,
    vector_codebook,
)
from onnxslim_tk.kernels.grouped import (
    feedback_variances,
    grouped_error_feedback,
)
from onnxslim_tk.kernels.least_squares import codebook_refit
from onnxslim_tk.kernels.rounding import symmetric_scales

Array = NDArray[Any]
Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]
_PRUNED: Final = 0.05
_DAMPING: Final = 0.01
# A refit that wants a scale far from the searched one has run into noise.
_LEAST_REFIT, _MOST_REFIT = 0.6, 1.6


@dataclass(frozen=True, slots=True, eq=False)
class Codebook:
    """Distinct values ``(k,)`` or vectors ``(k, d)`` of a weight.

    ``unit`` None: floats as they are. Otherwise whole numbers in [-127, 127], of which 1 stands
    for ``unit`` times the root mean square of its channel, before scales are searched; a unit of 0
    is the whole int8 grid, with scales that fit each channel's largest weight.
    """

    entries: Floats
    unit: float | None


INT8: Final = Codebook(np.arange(-TOP, TOP + 1, dtype=np.float64), 0.0)


def is_pruned(weight: Array) -> bool:
    """Whether at least 5 % of a weight are exact zeros, which then have to stay zeros."""
    return bool(np.count_nonzero(weight == 0) >= _PRUNED * weight.size)


class CodebookFit:
    """Fits and applies codebooks to one layer.

    ``second`` is the uncentred covariance of the layer's inputs, ``(groups, inputs, inputs)``, or
    None. Matrices are ``(groups, rows, inputs)``; a channel is what one scale holds for.
    """

    def __init__(self, layer: Layer, second: Floats | None) -> None:
        self.layer = layer
        self._second = second
        self.matrix: Floats = layer.matrix()
        self._rows = self._by_channel(self.matrix)
        # A channel of nothing but zeros has no scale, and must stay silent.
        self._silent = ~self._rows.any(axis=1)
        pruned = is_pruned(layer.weight)
        self._fixed: Mask | None = self.matrix == 0 if pruned or self._silent.any() else None

    def fit(self, clusters: int, dimensions: int, scaled: bool, seed: int) -> Codebook:
        """At most ``clusters`` entries of ``dimensions`` values for the layer's weight."""
        if scaled and dimensions == 1 and clusters > 2 * TOP:
            return INT8
        rows = self._rows / self._spreads[:, None] if scaled else self._rows
        if dimensions > 1:
            flat = self._from_channels(rows).reshape(-1, dimensions)
            entries = vector_codebook(flat, clusters, seed)
        else:
            shares = None if self._importance is None else np.sqrt(self._importance)
            entries = codebook(rows, clusters, shares, self._fixed is not None)
        if not scaled:
            return Codebook(entries.astype(np.float32).astype(np.float64), None)
        return Codebook(*on_integers(entries))

    def round(self, book: Codebook, feedback: bool) -> tuple[Floats, NDArray[np.float32]]:
        """The weight as values of ``book``, in its own shape, and one scale per channel.

        The scales are ones where the codebook holds floats. ``feedback`` lets later columns make
        up for rounding errors; it needs the covariance and a codebook of single values.
        """
        scales = self._scales(book)
        if not self._sweeps(book, feedback):
            return self._finished(book, self._nearest(book, scales), scales)
        values = self._swept(book, scales)
        if book.unit is None:
            values = self._refit_entries(book, values)
        return self._finished(book, values, scales)

    def foretell(self, book: Codebook, feedback: bool) -> tuple[Floats, NDArray[np.float32], float]:
        """What :meth:`round` gives without feedback, and the error to expect of it as asked for.

        The error is the relative squared one of the layer's output. No sweep is run for it: the
        covariance tells how much of a rounding error later columns can take back.
        """
        scales = self._scales(book)
        nearest_values = self._nearest(book, scales)
        values, refitted = self._finished(book, nearest_values, scales)
        change = self.matrix - self.rebuilt(values, refitted)
        pull = change if self._second is None else change @ self._second
        whole = self.matrix if self._second is None else self.matrix @ self._second
        noise, power = float(np.vdot(pull, change)), float(np.vdot(whole, self.matrix))
        if self._sweeps(book, feedback):
            squares = (self.matrix - nearest_values * self._per_row(scales)[:, :, None]) ** 2
            if self._fixed is not None and not self._fixed.all():
                # Feedback moves pruned weights too, and brings them back to zero.
                squares[self._fixed] = squares[~self._fixed].mean()
            noise = min(noise, float(np.einsum("gri,gi->", squares, self._variances)))
        return values, refitted, max(noise, 0.0) / power if power > 0 else 0.0

    def rebuilt(self, values: Floats, scales: Array) -> Floats:
        """What ``values`` and ``scales`` stand for, as a matrix."""
        per_row = self._per_row(scales.astype(np.float64))
        return np.asarray(self.layer.to_matrix(values) * per_row[:, :, None], np.float64)

    def _sweeps(self, book: Codebook, feedback: bool) -> bool:
        return feedback and self._second is not None and book.entries.ndim == 1

    def _finished(
        self, book: Codebook, values: Floats, scales: Floats
    ) -> tuple[Floats, NDArray[np.float32]]:
        stored = self.layer.from_matrix(values)
        if book.unit is None:
            return stored, np.ones(len(scales), np.float32)
        return stored, storable_scales(self._refit_scales(values, scales))

    @cached_property
    def _variances(self) -> Floats:
        assert self._second is not None
        return feedback_variances(self._second, _DAMPING)

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
        """How much each weight counts, ``(channels, weights)``: the power of its input."""
        if self._second is None:
            return None
        power = np.diagonal(self._second, axis1=1, axis2=2)
        # An input that the samples left silent still counts a little.
        power = power / max(float(power.mean()), 1e-30) + 1e-3
        return self._by_channel(np.broadcast_to(power[:, None, :], self.matrix.shape))

    def _scales(self, book: Codebook) -> Floats:
        if book.unit is None:
            return np.ones(len(self._rows))
        if book.unit == 0.0:
            return symmetric_scales(self._rows)
        scales = np.where(self._silent, 1.0, self._spreads * book.unit)
        if book.entries.ndim > 1:
            return scales
        return search_scales(self._rows, book.entries, scales, self._importance)

    def _nearest(self, book: Codebook, scales: Floats) -> Floats:
        # Vectors run along the stored weight, whatever its layout.
        stored = self._from_channels(self._rows / scales[:, None])
        values = self.layer.to_matrix(nearest_entries(stored, book.entries))
        return values if self._fixed is None else self._hold(values, self._fixed, book)

    def _hold(self, values: Floats, fixed: Mask, book: Codebook) -> Floats:
        return values if book.entries.ndim > 1 else np.where(fixed, 0.0, values)

    def _swept(self, book: Codebook, scales: Floats) -> Floats:
        per_row, fixed = self._per_row(scales), self._fixed

        def rounded(groups: Array, columns: Array, values: Floats) -> Floats:
            found = nearest_entries(values / per_row[groups], book.entries) * per_row[groups]
            return found if fixed is None else np.where(fixed[groups, :, columns], 0.0, found)

        assert self._second is not None
        swept = grouped_error_feedback(self.matrix, self._second, rounded, _DAMPING)
        values = nearest_entries(swept / per_row[:, :, None], book.entries)
        return values if fixed is None else np.where(fixed, 0.0, values)

    def _refit_entries(self, book: Codebook, values: Floats) -> Floats:
        """The best floats for the codes as they are; zeros that must stay forbid it."""
        if self._fixed is not None or self._second is None or len(self.matrix) > 1:
            return values
        codes, count = nearest(values[0], book.entries), len(book.entries)
        entries = codebook_refit(self.matrix[0], codes, count, self._second[0], None, _DAMPING)
        return np.asarray(entries[codes][None], np.float64)

    def _refit_scales(self, values: Floats, scales: Floats) -> Floats:
        """Per channel the least-squares scale for its values."""
        pull = values
        if self._second is not None:
            power = np.diagonal(self._second, axis1=1, axis2=2).mean(1)[:, None, None]
            pull = values @ self._second + _DAMPING * power * values
        meets = self._by_channel(self.matrix * pull).sum(1)
        norm = self._by_channel(values * pull).sum(1)
        found = np.divide(meets, norm, out=scales.copy(), where=norm > 0)
        near = (found > _LEAST_REFIT * scales) & (found < _MOST_REFIT * scales)
        return np.where(near, found, scales)

    def _by_channel(self, matrix: Array) -> Floats:
        rows = self.layer.by_channel(self.layer.from_matrix(matrix))
        return np.ascontiguousarray(rows, np.float64)

    def _from_channels(self, rows: Floats) -> Floats:
        return np.asarray(self.layer.from_channels(rows), np.float64)

    def _per_row(self, scales: Floats) -> Floats:
        """A channel's scale for every row of the matrix, ``(groups, rows)``."""
        spread = np.broadcast_to(self.layer.along(scales), self.layer.shape)
        return np.ascontiguousarray(self.layer.to_matrix(spread)[:, :, 0])
