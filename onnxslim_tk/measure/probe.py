"""Probing: what one rewrite alone does to the model's outputs."""

from collections.abc import Callable, Mapping, Sequence
from math import inf, isfinite, prod
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from onnxslim_tk.errors import SessionError
from onnxslim_tk.graph.model import Model, Tensor, to_stored
from onnxslim_tk.measure.observe import fetch
from onnxslim_tk.measure.runtime import Feed, Session, TensorInfo

_SILENT: Final = 1e-30
# What only moves or reshapes probabilities.
_MOVERS: Final = ("Identity", "Reshape", "Squeeze", "Unsqueeze", "Transpose", "Flatten")


class Probe:
    """Measures rewrites of ``model`` by their error at its outputs on ``feeds``.

    Probabilities that a Softmax makes count half, in decibels; the scores that go into it, their
    mean over the classes taken off, count the other half. A few samples tell the error of scores,
    while that of probabilities hangs on the few that are undecided; but only probabilities tell
    which scores matter.
    """

    def __init__(self, model: Model, feeds: Sequence[Feed]) -> None:
        self._model = model
        self._feeds = feeds
        floats = {o.name for o in Session(to_stored(model)).outputs if _is_float(o)}
        self._places = [k for k, t in enumerate(model.graph.outputs) if t.name in floats]
        self._reference = self._run(model)

    @property
    def measures(self) -> bool:
        """Whether the model has float outputs, the only ones whose error is a number."""
        return bool(self._places)

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
            values = self._run(other)
        except SessionError:
            return float("inf")
        errors = []
        for place in self._places:
            # A rewrite may put something else before an output, and so hide its scores.
            both = values[0].keys() & self._reference[0].keys()
            names = [name for name in (f"{place}", f"{place} scores") if name in both]
            found = [float(output_errors([n], self._reference, values).mean()) for n in names]
            errors.append(prod(found) ** (1 / len(found)) if isfinite(sum(found)) else inf)
        return float(np.mean(errors)) if errors else 0.0

    def _run(self, model: Model) -> list[dict[str, NDArray[Any]]]:
        outputs = {place: model.graph.outputs[place] for place in self._places}
        scores = {place: scores_behind(tensor) for place, tensor in outputs.items()}
        names = [tensor.name for tensor in outputs.values()]
        behind = [name for name, _ in filter(None, scores.values())]
        found = []
        for values in fetch(model, [*names, *behind], self._feeds):
            run = {f"{place}": values[tensor.name] for place, tensor in outputs.items()}
            for place, (name, axis) in ((k, v) for k, v in scores.items() if v is not None):
                run[f"{place} scores"] = centred(values[name], axis).reshape(-1)
            found.append(run)
        return found


def _is_float(info: TensorInfo) -> bool:
    return info.dtype is not None and info.dtype.kind == "f"


def scores_behind(output: Tensor) -> tuple[str, int] | None:
    """What a Softmax that makes ``output`` reads, and its axis; None where none does."""
    tensor = output
    while tensor.inputs and tensor.inputs[0].op in _MOVERS:
        tensor = tensor.inputs[0].inputs[0]
    maker = tensor.inputs[0] if tensor.inputs else None
    if maker is None or maker.op not in ("Softmax", "LogSoftmax") or not maker.inputs[0].inputs:
        return None
    return maker.inputs[0].name, int(maker.attrs.get("axis", -1))


def centred(values: NDArray[Any], axis: int) -> NDArray[Any]:
    """Scores with their mean along ``axis`` taken off: all that a Softmax sees of them."""
    if not -values.ndim <= axis < values.ndim:
        return values
    wide = values.astype(np.float64)
    with np.errstate(invalid="ignore"):
        return np.asarray(wide - wide.mean(axis=axis, keepdims=True))


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
