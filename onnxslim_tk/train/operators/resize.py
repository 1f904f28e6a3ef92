"""Resize and Upsample: interpolation along one axis after the other."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812

from onnxslim_tk.train.rules import Node, Rules, Tensor, axis_of, integers

RESIZE = Rules()
_KERNELS = {3: "linear", 4: "bilinear", 5: "trilinear"}
_ROUNDINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "floor": torch.floor,
    "ceil": torch.ceil,
    "round_prefer_floor": lambda place: torch.ceil(place - 0.5),
    "round_prefer_ceil": lambda place: torch.floor(place + 0.5),
}


@dataclass(frozen=True, slots=True)
class _Axis:
    """One axis that is resized: ``old`` to ``new`` elements, by ``scale``."""

    number: int
    old: int
    new: int
    scale: float


@RESIZE.operator("Upsample")
def _upsample(node: Node, x: Tensor, scales: Tensor | None = None) -> Tensor:
    given = node.get("scales") if scales is None else scales.tolist()
    return _resized(node, x, _by_scales(x, list(range(x.dim())), given), "asymmetric", "floor")


@RESIZE.operator("Resize")
def _resize(
    node: Node,
    x: Tensor,
    region: Tensor | None = None,
    scales: Tensor | None = None,
    sizes: Tensor | None = None,
) -> Tensor:
    if node.opset < 11:
        # What was the second input then.
        factors = [] if region is None else region.tolist()
        axes = _by_scales(x, list(range(x.dim())), factors)
        down = any(axis.scale < 1 for axis in axes)
        return _resized(node, x, axes, "asymmetric", "ceil" if down else "floor")
    if node.get("antialias", 0) or node.get("exclude_outside", 0):
        raise node.refuse("antialias or exclude_outside")
    if node.get("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise node.refuse("a fixed aspect ratio")
    along = [axis_of(axis, x.dim()) for axis in node.get("axes", range(x.dim()))]
    if sizes is not None and sizes.numel():
        pairs = list(zip(along, integers(sizes), strict=True))
        axes = [_Axis(k, x.shape[k], new, new / x.shape[k]) for k, new in pairs]
    else:
        axes = _by_scales(x, along, [] if scales is None else scales.tolist())
    mode = node.get("coordinate_transformation_mode", "half_pixel")
    return _resized(node, x, axes, mode, node.get("nearest_mode", "round_prefer_floor"))


def _by_scales(x: Tensor, along: list[int], scales: list[float]) -> list[_Axis]:
    # In 32 bits, as the runtime has it: 10 times 2.6 are 26 there, and a little less in 64.
    sizes = [
        int(np.float32(x.shape[k]) * np.float32(s)) for k, s in zip(along, scales, strict=True)
    ]
    return [
        _Axis(k, x.shape[k], size, scale)
        for k, size, scale in zip(along, sizes, scales, strict=True)
    ]


def _resized(node: Node, x: Tensor, axes: list[_Axis], mode: str, rounding: str) -> Tensor:
    axes = [axis for axis in axes if axis.new != axis.old or axis.scale != 1]
    if all(axis.new == axis.old for axis in axes):
        # Whatever the scales say, the runtime copies what keeps its size.
        return x
    kind = node.get("mode", "nearest")
    if kind == "nearest":
        return _nearest(node, x, axes, mode, rounding)
    spatial = [axis for axis in axes if axis.number >= 2]
    exact = all(axis.new == axis.old * axis.scale for axis in axes)
    corners = mode == "align_corners"
    plain = corners or (mode in ("half_pixel", "pytorch_half_pixel") and exact)
    if kind == "linear" and plain and x.dim() in _KERNELS and len(spatial) == len(axes):
        one = mode == "pytorch_half_pixel" and any(axis.new == 1 for axis in axes)
        if not one:
            size = list(x.shape[2:])
            for axis in spatial:
                size[axis.number - 2] = axis.new
            return F.interpolate(x, size, mode=_KERNELS[x.dim()], align_corners=corners)
    weights = {"linear": _linear, "cubic": _cubic(node.get("cubic_coeff_a", -0.75))}[kind]
    for axis in axes:
        x = _interpolated(x, axis, _places(node, axis, mode), weights)
    return x


def _places(node: Node, axis: _Axis, mode: str) -> Tensor:
    """Where in the old axis each new element lies, to the last bit as the runtime has it."""
    index = torch.arange(axis.new, dtype=torch.float32)
    scale = torch.tensor(axis.scale, dtype=torch.float32)
    if mode == "asymmetric":
        return index / scale
    if mode == "align_corners":
        return index * ((axis.old - 1) / (axis.new - 1) if axis.new > 1 else 0.0)
    if mode == "half_pixel" or (mode == "pytorch_half_pixel" and axis.new > 1):
        return (index + 0.5) / scale - 0.5
    if mode == "pytorch_half_pixel":
        return torch.zeros_like(index)
    if mode == "half_pixel_symmetric":
        adjusted = axis.new / (axis.scale * axis.old)
        middle = axis.old / 2 * (1 - adjusted)
        return middle + (index + 0.5) / scale - 0.5
    raise node.refuse(f"coordinates {mode}")


def _nearest(node: Node, x: Tensor, axes: list[_Axis], mode: str, rounding: str) -> Tensor:
    found = {
        axis: _ROUNDINGS[rounding](_places(node, axis, mode)).clamp(0, axis.old - 1).long()
        for axis in axes
    }
    repeats = all(
        axis.number >= 2
        and axis.new % axis.old == 0
        and torch.equal(places, torch.arange(axis.new) // (axis.new // axis.old))
        for axis, places in found.items()
    )
    if repeats and found and x.dim() in _KERNELS:
        size = list(x.shape[2:])
        for axis in axes:
            size[axis.number - 2] = axis.new
        return F.interpolate(x, size, mode="nearest")
    for axis, places in found.items():
        x = x.index_select(axis.number, places)
    return x


def _linear(offset: Tensor) -> Tensor:
    return torch.stack([1 - offset, offset])


def _cubic(a: float) -> Callable[[Tensor], Tensor]:
    """Weights of four neighbours (Keys, 1981)."""

    def near(t: Tensor) -> Tensor:
        return ((a + 2) * t - (a + 3)) * t * t + 1

    def far(t: Tensor) -> Tensor:
        return ((a * t - 5 * a) * t + 8 * a) * t - 4 * a

    return lambda t: torch.stack([far(t + 1), near(t), near(1 - t), far(2 - t)])


def _interpolated(
    x: Tensor, axis: _Axis, places: Tensor, weights: Callable[[Tensor], Tensor]
) -> Tensor:
    shares = weights(places - places.floor()).to(x.dtype)
    start = places.floor().long() - (len(shares) // 2 - 1)
    shape = [1] * x.dim()
    shape[axis.number] = -1
    total = torch.zeros((), dtype=x.dtype)
    for k, share in enumerate(shares):
        neighbours = x.index_select(axis.number, (start + k).clamp(0, axis.old - 1))
        total = total + neighbours * share.reshape(shape)
    return total
