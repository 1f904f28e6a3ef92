"""Rounding of a layer's weight to a codebook, with error feedback and refits."""

from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from onnxslim_tk.graph.layers import Layer
from onnxslim_tk.kernels.codebook import TOP, nearest_codes, nearest_entries
from onnxslim_tk.kernels.descent import codebook_refit, coordinate_descent
from onnxslim_tk.kernels.grouped import RoundColumn, grouped_damped, grouped_error_feedback
from onnxslim_tk.kernels.vectors import nearest_down, vector_descent, vector_feedback

Array = NDArray[Any]
Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]
_Way = Literal["along", "down", "across"]
# A refit that wants a scale far from the searched one has run into noise.
_LEAST_REFIT: Final = 0.6
_MOST_REFIT: Final = 1.6


@dataclass(frozen=True, slots=True, eq=False)
class Codebook:
    """Distinct values ``(k,)`` or vectors ``(k, d)`` of a weight.

    ``unit`` None: floats as they are. Otherwise whole numbers in [-63, 63], of which 1 stands
    for ``unit`` times the root mean square of its channel, before scales are searched; a unit of 0
    is a whole grid of 2 to 8 bits, with scales that fit each channel's largest weight.
    """

    entries: Floats
    unit: float | None


@dataclass(frozen=True, slots=True, eq=False)
class _Rounded:
    """A weight as values of a codebook, ``(groups, rows, inputs)``, times a scale per channel."""

    book: Codebook
    values: Floats
    scales: Floats
    error: float


class Feedback:
    """Rounds the weight of a layer so that its values make up for each other's errors.

    ``matrix`` is ``(groups, rows, inputs)``, ``fixed`` says which of its zeros stay, ``second`` is
    the covariance of the inputs, ``(groups, inputs, inputs)``.
    """

    def __init__(
        self, layer: Layer, matrix: Floats, fixed: Mask | None, second: Floats, damping: float
    ) -> None:
        self._layer = layer
        self._matrix = matrix
        self._fixed = fixed
        self._second = second
        self._damping = damping
        self._ways: dict[int, _Way] = {}

    def fits(self, book: Codebook) -> bool:
        """Whether it can round to ``book``: each vector has to stay in a row or in a column."""
        return book.entries.ndim == 1 or self._way(book.entries.shape[1]) != "across"

    def rounded(self, book: Codebook, scales: Floats, rounds: int) -> tuple[Floats, Floats]:
        """Values, ``(groups, rows, inputs)``, and scales per channel.

        After a sweep entries and scales are refitted and every value rounded again, ``rounds``
        times; the best is taken. A whole grid is swept alone.
        """
        normal = grouped_damped(self._second, self._damping)
        found = best = self._settled(book, self._swept(book, scales), scales, normal)
        for _ in range(rounds if book.unit != 0.0 else 0):
            found = self._descended(self._refitted(found, normal), normal)
            best = found if found.error < best.error else best
        return best.values, best.scales

    def _way(self, width: int) -> _Way:
        """How vectors of consecutive stored values lie in the matrix."""
        if width not in self._ways:
            shape = self._layer.shape
            places = self._layer.to_matrix(np.arange(self._layer.size).reshape(shape))
            self._ways[width] = "across"
            if _hold_together(places, width):
                self._ways[width] = "along"
            elif _hold_together(places.swapaxes(1, 2), width):
                self._ways[width] = "down"
        return self._ways[width]

    def _rounding(self, book: Codebook, scales: Floats) -> RoundColumn:
        per_row, fixed = per_row_of(self._layer, scales), self._fixed

        def single(groups: Array, columns: Array, values: Floats) -> Floats:
            found = nearest_entries(values / per_row[groups], book.entries) * per_row[groups]
            return found if fixed is None else np.where(fixed[groups, :, columns], 0.0, found)

        def down(groups: Array, columns: Array, values: Floats) -> Floats:
            found = nearest_down(values.ravel(), per_row[groups].ravel(), book.entries)
            return found.reshape(values.shape)

        return single if book.entries.ndim == 1 else down

    def _goes_along(self, book: Codebook) -> bool:
        return book.entries.ndim > 1 and self._way(book.entries.shape[1]) == "along"

    def _swept(self, book: Codebook, scales: Floats) -> Floats:
        if self._goes_along(book):
            parts = zip(self._matrix, self._second, per_row_of(self._layer, scales), strict=True)
            swept = np.stack(
                [vector_feedback(w, c, s, book.entries, self._damping) for w, c, s in parts]
            )
        else:
            rounding = self._rounding(book, scales)
            swept = grouped_error_feedback(self._matrix, self._second, rounding, self._damping)
        return self._on_book(book, swept, scales)

    def _descended(self, found: _Rounded, normal: Floats) -> _Rounded:
        """With every value rounded once more, others as they are."""
        book, per_row = found.book, per_row_of(self._layer, found.scales)
        start = found.values * per_row[:, :, None]
        if self._goes_along(book):
            parts = zip(self._matrix, start, normal, per_row, strict=True)
            moved = np.stack([vector_descent(w, v, c, s, book.entries) for w, v, c, s in parts])
        else:
            rounding = self._rounding(book, found.scales)
            moved = coordinate_descent(self._matrix, start, normal, rounding)
        values = self._on_book(book, moved, found.scales)
        return self._settled(book, values, found.scales, normal)

    def _refitted(self, found: _Rounded, normal: Floats) -> _Rounded:
        """With better entries for its codes, where that makes it better."""
        book, scales = found.book, found.scales
        codes, width = nearest_codes(self._layer.from_matrix(found.values), book.entries), 1
        if book.entries.ndim > 1:
            width = book.entries.shape[1]
            codes = codes[:, None] * width + np.arange(width)
        flat = self._layer.to_matrix(codes.reshape(self._layer.shape))
        entries = codebook_refit(
            self._matrix,
            flat,
            book.entries.ravel(),
            normal,
            per_row_of(self._layer, scales),
            keep_zero=book.entries.ndim == 1,
        )
        if book.unit is not None:
            unit = float(np.abs(entries).max()) / TOP
            if unit == 0.0:
                return found
            entries, scales = np.rint(entries / unit) + 0.0, scales * unit
        values = self._held(entries[flat])
        moved = Codebook(np.unique(entries.reshape(book.entries.shape), axis=0), book.unit)
        refitted = self._settled(moved, values, scales, normal)
        return refitted if refitted.error < found.error else found

    def _settled(self, book: Codebook, values: Floats, scales: Floats, normal: Floats) -> _Rounded:
        """With the best scales for its values."""
        if book.unit is not None:
            scales = refitted_scales(self._layer, self._matrix, values, scales, normal)
        change = self._matrix - values * per_row_of(self._layer, scales)[:, :, None]
        return _Rounded(book, values, scales, float(np.vdot(change @ normal, change)))

    def _on_book(self, book: Codebook, matrix: Floats, scales: Floats) -> Floats:
        relative = matrix / per_row_of(self._layer, scales)[:, :, None]
        stored = nearest_entries(self._layer.from_matrix(relative), book.entries)
        return self._held(self._layer.to_matrix(stored))

    def _held(self, values: Floats) -> Floats:
        return values if self._fixed is None else np.where(self._fixed, 0.0, values)


def _hold_together(places: NDArray[np.int64], width: int) -> bool:
    """Whether the vectors of a weight are runs of the last axis; ``places`` are flat indices."""
    if places.shape[2] % width:
        return False
    runs = places.reshape(-1, width)
    return bool((np.diff(runs, axis=1) == 1).all() and not (runs[:, 0] % width).any())


def refitted_scales(
    layer: Layer, matrix: Floats, values: Floats, scales: Floats, normal: Floats | None
) -> Floats:
    """Per channel the least-squares scale for its ``values``, if near the one in ``scales``."""
    pull = values if normal is None else values @ normal
    meets = layer.by_channel(layer.from_matrix(matrix * pull)).sum(1)
    norm = layer.by_channel(layer.from_matrix(values * pull)).sum(1)
    found = np.divide(meets, norm, out=scales.copy(), where=norm > 0)
    near = (found > _LEAST_REFIT * scales) & (found < _MOST_REFIT * scales)
    return np.where(near, found, scales)


def per_row_of(layer: Layer, scales: Floats) -> Floats:
    """A channel's scale for every row of the matrix, ``(groups, rows)``."""
    spread = np.broadcast_to(layer.along(scales), layer.shape)
    return np.ascontiguousarray(layer.to_matrix(spread)[:, :, 0])
