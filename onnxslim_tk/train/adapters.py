"""Adapters: 1x1 layers between a student's tensor and a wider one of its teacher's."""

from collections.abc import Sequence
from typing import Final

import torch
from torch import nn

from onnxslim_tk.errors import TrainingError
from onnxslim_tk.train.rules import Tensor

_RIDGE: Final = 1e-3
_LEAST: Final = 1e-12


class Adapter(nn.Module):
    """A linear map of the channels along one axis; begins as the least-squares fit of ``pairs``."""

    def __init__(self, pairs: Sequence[tuple[Tensor, Tensor]], axis: int) -> None:
        super().__init__()
        self._axis = axis
        x, y = (
            torch.cat([_rows(pair[side], axis) for pair in pairs]).to(torch.float64)
            for side in (0, 1)
        )
        gram = x.T @ x
        gram += _RIDGE * gram.diagonal().mean().clamp(min=_LEAST) * torch.eye(len(gram))
        self.weight = nn.Parameter(torch.linalg.solve(gram, x.T @ y).to(pairs[0][0].dtype))

    def forward(self, value: Tensor) -> Tensor:
        """``value`` with the teacher's number of channels."""
        return (value.movedim(self._axis, -1) @ self.weight).movedim(-1, self._axis)


def adapter_for(pairs: Sequence[tuple[Tensor, Tensor]], names: tuple[str, str]) -> Adapter | None:
    """An adapter from one tensor's channels to the other's; None where they are as many.

    ``pairs`` are the values of both for some samples. Channels are the one axis in which the shapes
    differ. Raises TrainingError where they differ in more than that.
    """
    if not pairs:
        raise TrainingError("train: an adapter needs samples to begin with")
    left, right = (tuple(value.shape) for value in pairs[0])
    axis = channel_axis(left, right)
    if axis is None and left != right:
        raise TrainingError(
            f"train: no adapter leads from {names[0]!r} of the shape {left} to the teacher's "
            f"{names[1]!r} of the shape {right}"
        )
    return None if axis is None else Adapter(pairs, axis)


def channel_axis(left: tuple[int, ...], right: tuple[int, ...]) -> int | None:
    """The one axis, other than the first, in which two shapes differ; None where there is none."""
    if len(left) != len(right):
        return None
    differing = [k for k, (a, b) in enumerate(zip(left, right, strict=True)) if a != b]
    return differing[0] if len(differing) == 1 and differing[0] > 0 else None


def _rows(value: Tensor, axis: int) -> Tensor:
    return value.movedim(axis, -1).reshape(-1, value.shape[axis])
