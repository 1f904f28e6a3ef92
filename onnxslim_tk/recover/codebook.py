"""A layer's weight on a codebook: entries fitted to it, scales, and rounding with feedback."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, Literal

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
from onnxslim_tk.kernels.descent import codebook_refit, coordinate_descent
from onnxslim_tk.kernels.grouped import (
    RoundColumn,
    feedback_variances,
    grouped_damped,
    grouped_error_feedback,
)
from onnxslim_tk.kernels.least_squares import shrinkage
from onnxslim_tk.kernels.rounding import symmetric_scales
from onnxslim_tk.measure.observe import Moments

Array = NDArray[Any]
Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]
Effort = Literal["quick", "normal", "thorough"]
_PRUNED: Final = 0.05
_LEAST_DAMPING: Final = 0.01
# Rows of one sample resemble each other: they count for a third of independent ones.
_ALIKE: Final = 3.0
# Moments are summed in float32: a direction below this share of all energy is rounding noise.
_NOISE: Final = 1e-6
# A refit that wants a scale far from the searched one has run into noise.
_LEAST_REFIT, _MOST_REFIT = 0.6, 1.6
_ROUNDS: Final = {"quick": 0, "normal": 1, "thorough": 4}
# So many weights tell entries, scales and error of a layer as well as all would.
_ENOUGH: Final = 1 << 19


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


@dataclass(frozen=True, slots=True, eq=False)
class _Rounded:
    """A weight as values of a codebook, ``(groups, rows, inputs)``, times a scale per channel."""

    book: Codebook
    values: Floats
    scales: Floats
    error: float


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
    mean, which a shift of the bias will take off. Matrices are ``(groups, rows, inputs)``; a
    channel is what one scale holds for.

    ``effort`` is ``quick``: nearest values, scales searched; ``normal``: values rounded column
    after column, so that the columns to come make up for the error (GPTQ, Frantar et al., 2022),
    then entries and scales refitted by least squares and every value rounded once more to what is
    best while all others stay (Behdin et al., 2023); ``thorough``: refitted and rounded again,
    four times. More than quick needs second moments and a codebook of single values.
    """

    def __init__(
        self, layer: Layer, moments: Moments | None, effort: Effort, centred: bool = False
    ) -> None:
        self.layer = layer
        self._rounds = _ROUNDS[effort]
        self._second = None if moments is None else _spread(moments, centred)
        self._power = None if moments is None else moments.second
        self._count = 0 if moments is None else moments.count
        self.matrix: Floats = layer.matrix()
        self._rows = self._by_channel(self.matrix)
        # A channel of nothing but zeros has no scale, and must stay silent.
        self._silent = ~self._rows.any(axis=1)
        pruned = is_pruned(layer.weight)
        self._fixed: Mask | None = self.matrix == 0 if pruned or self._silent.any() else None
        self._some = slice(None, None, max(1, layer.size // _ENOUGH))

    def fit(self, clusters: int, dimensions: int, scaled: bool, seed: int) -> Codebook:
        """At most ``clusters`` entries of ``dimensions`` values for the layer's weight.

        Of three entries one is 0.
        """
        if scaled and dimensions == 1 and clusters > 2 * TOP:
            return INT8
        if dimensions > 1:
            rows = self._rows / self._spreads[:, None] if scaled else self._rows
            flat = self._from_channels(rows).reshape(-1, dimensions)
            entries = vector_codebook(flat, clusters, seed)
        else:
            rows = self._rows[self._some]
            rows = rows / self._spreads[self._some, None] if scaled else rows
            shares = None if self._importance is None else np.sqrt(self._importance[self._some])
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
        if self._second is None or not self._sweeps(book):
            return self._finished(book, self._nearest(book, scales), scales)
        normal = grouped_damped(self._second, self._damping)
        found = best = self._settled(book, self._swept(book, scales), scales, normal)
        for _ in range(self._rounds if book.unit != 0.0 else 0):
            found = self._descended(self._refitted(found, normal), normal)
            best = found if found.error < best.error else best
        stored = self.layer.from_matrix(best.values)
        if book.unit is None:
            return stored, np.ones(len(scales), np.float32)
        return stored, storable_scales(best.scales)

    def foretell(self, book: Codebook) -> Foretold:
        """About what :meth:`round` gives: nearest values, and the error to expect.

        The error is the relative squared one of the layer's output. No sweep is run for it: the
        covariance tells how much of a rounding error later columns can take back. Some channels
        stand for all of a large layer.
        """
        if not self._sweeps(book) and (self._second is not None or book.entries.ndim > 1):
            return self._foretold_exactly(book)
        rows, some = self._rows[self._some], self._some
        scales = self._scales(book, some)
        values = nearest_entries(rows / scales[:, None], book.entries)
        if self._fixed is not None:
            values = np.where(rows == 0, 0.0, values)
        squares = (rows - values * scales[:, None]) ** 2
        if self._second is not None:
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
        per_row = self._per_row(scales.astype(np.float64))
        return np.asarray(self.layer.to_matrix(values) * per_row[:, :, None], np.float64)

    def _sweeps(self, book: Codebook) -> bool:
        return self._rounds > 0 and self._second is not None and book.entries.ndim == 1

    def _finished(
        self, book: Codebook, values: Floats, scales: Floats
    ) -> tuple[Floats, NDArray[np.float32]]:
        stored = self.layer.from_matrix(values)
        if book.unit is None:
            return stored, np.ones(len(scales), np.float32)
        return stored, storable_scales(self._refit_scales(values, scales, self._second))

    @cached_property
    def _damping(self) -> float:
        assert self._second is not None
        some = self._second[:: max(1, len(self._second) // 16)]
        need = _ALIKE * float(np.mean([shrinkage(c, self._count) for c in some]))
        return max(_LEAST_DAMPING, need)

    @cached_property
    def _variances(self) -> Floats:
        """What a squared error of each weight costs after feedback, ``(channels, weights)``."""
        assert self._second is not None
        variances = feedback_variances(self._second, self._damping)
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
            return symmetric_scales(rows)
        scales = np.where(self._silent[some], 1.0, self._spreads[some] * book.unit)
        if book.entries.ndim > 1:
            return scales
        weights = None if self._importance is None else self._importance[some]
        return search_scales(rows, book.entries, scales, weights)

    def _nearest(self, book: Codebook, scales: Floats) -> Floats:
        # Vectors run along the stored weight, whatever its layout.
        stored = self._from_channels(self._rows / scales[:, None])
        values = self.layer.to_matrix(nearest_entries(stored, book.entries))
        return self._held(values) if book.entries.ndim == 1 else values

    def _held(self, values: Floats) -> Floats:
        return values if self._fixed is None else np.where(self._fixed, 0.0, values)

    def _rounding(self, book: Codebook, scales: Floats) -> RoundColumn:
        per_row, fixed = self._per_row(scales), self._fixed

        def rounded(groups: Array, columns: Array, values: Floats) -> Floats:
            found = nearest_entries(values / per_row[groups], book.entries) * per_row[groups]
            return found if fixed is None else np.where(fixed[groups, :, columns], 0.0, found)

        return rounded

    def _on_book(self, book: Codebook, matrix: Floats, scales: Floats) -> Floats:
        return self._held(nearest_entries(matrix / self._per_row(scales)[:, :, None], book.entries))

    def _swept(self, book: Codebook, scales: Floats) -> Floats:
        assert self._second is not None
        swept = grouped_error_feedback(
            self.matrix, self._second, self._rounding(book, scales), self._damping
        )
        return self._on_book(book, swept, scales)

    def _settled(self, book: Codebook, values: Floats, scales: Floats, normal: Floats) -> _Rounded:
        """With the best scales for its values."""
        if book.unit is not None:
            scales = self._refit_scales(values, scales, normal)
        change = self.matrix - values * self._per_row(scales)[:, :, None]
        return _Rounded(book, values, scales, float(np.vdot(change @ normal, change)))

    def _refitted(self, found: _Rounded, normal: Floats) -> _Rounded:
        """With better entries for its codes, where that makes it better."""
        codes = nearest(found.values, found.book.entries)
        entries = codebook_refit(
            self.matrix, codes, found.book.entries, normal, self._per_row(found.scales)
        )
        if found.book.unit is not None:
            unit = float(np.abs(entries).max()) / TOP
            entries = np.rint(entries / unit) + 0.0 if unit > 0 else found.book.entries
            scales = found.scales * (unit if unit > 0 else 1.0)
        else:
            scales = found.scales
        book = Codebook(np.unique(entries), found.book.unit)
        moved = self._settled(book, self._held(entries[codes]), scales, normal)
        return moved if moved.error < found.error else found

    def _descended(self, found: _Rounded, normal: Floats) -> _Rounded:
        book, scales = found.book, found.scales
        start = found.values * self._per_row(scales)[:, :, None]
        moved = coordinate_descent(self.matrix, start, normal, self._rounding(book, scales))
        return self._settled(book, self._on_book(book, moved, scales), scales, normal)

    def _refit_scales(self, values: Floats, scales: Floats, normal: Floats | None) -> Floats:
        """Per channel the least-squares scale for its values."""
        pull = values if normal is None else values @ normal
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
