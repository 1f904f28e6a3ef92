"""Probing: what one rewrite alone does to the model's outputs."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from onnxslim_tk.errors import SessionError
from onnxslim_tk.graph.model import Model, to_stored
from onnxslim_tk.measure.runtime import Feed, Session

_SILENT: Final = 1e-30


class Probe:
    """Measures rewrites of ``model`` by their error at its outputs on ``feeds``."""

    def __init__(self, model: Model, feeds: Sequence[Feed]) -> None:
        self._model = model
        self._feeds = feeds
        session = Session(to_stored(model))
        names = [o.name for o in session.outputs if o.dtype is not None and o.dtype.kind == "f"]
        self._names = names
        self._reference = [session.run(feed, names) for feed in feeds]

    @property
    def measures(self) -> bool:
        """Whether the model has float outputs, the only ones whose error is a number."""
        return bool(self._names)

    def error(self, rewrite: Callable[[Model], None]) -> float:
        """The :meth:`difference` that ``rewrite`` makes; it is given a copy to work on."""
        twin = self._model.copy()
        rewrite(twin)
        return self.difference(twin)

    def difference(self, other: Model) -> float:
        """Relative squared error of the float outputs of ``other``, the mean over outputs.

        An output that is nothing but zeros counts with its plain squared error, a sample whose
        output has another shape as zeros. Infinite where ``other`` does not run or gives what is
        not finite where the model gives what is.
        """
        try:
            session = Session(to_stored(other))
            values = [session.run(feed, self._names) for feed in self._feeds]
        except SessionError:
            return float("inf")
        return float(output_errors(self._names, self._reference, values).mean())


def output_errors(
    names: Sequence[str],
    reference: Sequence[Mapping[str, NDArray[Any]]],
    values: Sequence[Mapping[str, NDArray[Any]]],
) -> NDArray[np.float64]:
    """Squared errors ``(feeds,)`` of the outputs ``names`` over their mean squares.

    Means over outputs, as :meth:`Probe.difference` has them.
    """
    errors = np.zeros((max(len(names), 1), len(values)))
    for row, name in zip(errors, names, strict=False):
        pairs = zip(reference, values, strict=True)
        squares = np.array([_squares(before[name], after[name]) for before, after in pairs])
        energy = float(squares[:, 1].mean())
        row[:] = squares[:, 0] / (energy if energy * len(values) > _SILENT else 1 / len(values))
    return np.asarray(errors.mean(axis=0), np.float64)


def _squares(reference: NDArray[Any], value: NDArray[Any]) -> tuple[float, float]:
    """Squared error and energy, where the reference is finite."""
    usable = np.isfinite(reference)
    wide = np.where(usable, reference, 0).astype(np.float64)
    energy = float(np.square(wide).sum())
    if reference.shape != value.shape:
        return energy, energy
    with np.errstate(invalid="ignore"):
        noise = float(np.square(wide - np.where(usable, value, 0)).sum())
    return (noise if np.isfinite(noise) else float("inf")), energy
