"""Operators that reshape, cut, join, and fill tensors."""

from math import ceil, prod
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812

from onnxslim_tk.train.rules import Node, Rules, Tensor, axis_of, flat_pads, integers

SHAPE = Rules()
_PAD_MODES = {"reflect": "reflect", "edge": "replicate", "wrap": "circular"}


@SHAPE.operator("Shape")
def _shape(node: Node, x: Tensor) -> Tensor:
    sizes = list(x.shape)[slice(node.get("start", 0), node.get("end"))]
    return torch.tensor(sizes, dtype=torch.int64)


@SHAPE.operator("Size")
def _size(node: Node, x: Tensor) -> Tensor:
    return torch.tensor(x.numel(), dtype=torch.int64)


@SHAPE.operator("Reshape")
def _reshape(node: Node, x: Tensor, shape: Tensor | None = None) -> Tensor:
    sizes = node.ints("shape", shape) or []
    if not node.get("allowzero", 0):
        sizes = [x.shape[k] if size == 0 else size for k, size in enumerate(sizes)]
    return x.reshape(sizes)


@SHAPE.operator("Flatten")
def _flatten(node: Node, x: Tensor) -> Tensor:
    axis = axis_of(node.get("axis", 1), x.dim())
    return x.reshape(prod(x.shape[:axis]), prod(x.shape[axis:]))


@SHAPE.operator("Transpose")
def _transpose(node: Node, x: Tensor) -> Tensor:
    return x.permute(node.get("perm", list(range(x.dim()))[::-1]))


@SHAPE.operator("Squeeze")
def _squeeze(node: Node, x: Tensor, axes: Tensor | None = None) -> Tensor:
    found = node.ints("axes", axes)
    return x.squeeze() if found is None else x.squeeze(tuple(found))


@SHAPE.operator("Unsqueeze")
def _unsqueeze(node: Node, x: Tensor, axes: Tensor | None = None) -> Tensor:
    found = node.ints("axes", axes) or []
    rank = x.dim() + len(found)
    for axis in sorted(axis_of(axis, rank) for axis in found):
        x = x.unsqueeze(axis)
    return x


@SHAPE.operator("Concat")
def _concat(node: Node, *inputs: Tensor) -> Tensor:
    # PyTorch would forgive an empty vector among tensors of another rank; it is a matter of order.
    return torch.cat(inputs, node.get("axis", 1))


@SHAPE.operator("Split")
def _split(node: Node, x: Tensor, sizes: Tensor | None = None) -> tuple[Tensor, ...]:
    axis = axis_of(node.get("axis", 0), x.dim())
    found = node.ints("split", sizes)
    if found is None:
        count = node.get("num_outputs", node.outputs)
        each = -(-x.shape[axis] // count)
        found = [each] * (count - 1) + [x.shape[axis] - each * (count - 1)]
    return tuple(torch.split(x, found, axis))


@SHAPE.operator("Slice")
def _slice(
    node: Node,
    x: Tensor,
    starts: Tensor | None = None,
    ends: Tensor | None = None,
    axes: Tensor | None = None,
    steps: Tensor | None = None,
) -> Tensor:
    first, last = node.ints("starts", starts) or [], node.ints("ends", ends) or []
    along = node.ints("axes", axes) or list(range(len(first)))
    stride = [1] * len(first) if steps is None else integers(steps)
    for start, end, axis, step in zip(first, last, along, stride, strict=True):
        size = x.shape[axis]
        if step > 0:
            start, end = (max(min(n, size), -size - 1) for n in (start, end))
            # The slices of Python: far ends are cut, negative numbers count from the back.
            x = x[(slice(None),) * axis_of(axis, x.dim()) + (slice(start, end, step),)]
        else:
            start, end = (n + size if n < 0 else n for n in (start, end))
            places = range(min(max(start, 0), size - 1), max(end, -1), step)
            x = x.index_select(axis, torch.tensor(list(places), dtype=torch.int64))
    return x


@SHAPE.operator("Expand")
def _expand(node: Node, x: Tensor, shape: Tensor) -> Tensor:
    return x.expand(torch.broadcast_shapes(x.shape, tuple(integers(shape))))


@SHAPE.operator("Tile")
def _tile(node: Node, x: Tensor, repeats: Tensor) -> Tensor:
    return x.repeat(integers(repeats)) if x.dim() else x


@SHAPE.operator("ConstantOfShape")
def _constant_of_shape(node: Node, shape: Tensor) -> Tensor:
    value = node.get("value")
    value = torch.zeros(1) if value is None else value
    return value.reshape(()).expand(integers(shape)).clone()


@SHAPE.operator("Constant")
def _constant(node: Node) -> Any:
    for name, value in node.attributes.items():
        if name in ("value_float", "value_floats"):
            return torch.tensor(value, dtype=torch.float32)
        if name in ("value_int", "value_ints"):
            return torch.tensor(value, dtype=torch.int64)
        if name == "value":
            return value
    raise node.refuse("strings or a sparse tensor")


@SHAPE.operator("Range")
def _range(node: Node, start: Tensor, limit: Tensor, step: Tensor) -> Tensor:
    count = max(ceil((limit.item() - start.item()) / step.item()), 0)
    return start + step * torch.arange(count, dtype=start.dtype)


@SHAPE.operator("EyeLike")
def _eye_like(node: Node, x: Tensor) -> Tensor:
    offset = node.get("k", 0)
    eye = torch.ones_like(x).tril(offset).triu(offset)
    if node.get("dtype") is not None:
        raise node.refuse("another element type")
    return eye


@SHAPE.operator("Trilu")
def _trilu(node: Node, x: Tensor, diagonal: Tensor | None = None) -> Tensor:
    k = 0 if diagonal is None else integers(diagonal)[0]
    return torch.triu(x, k) if node.get("upper", 1) else torch.tril(x, k)


@SHAPE.operator("Pad")
def _pad(
    node: Node,
    x: Tensor,
    pads: Tensor | None = None,
    value: Tensor | None = None,
    axes: Tensor | None = None,
) -> Tensor:
    given = node.ints("paddings" if node.opset < 2 else "pads", pads) or []
    along = list(range(x.dim())) if axes is None else integers(axes)
    half = len(given) // 2
    before, after = [0] * x.dim(), [0] * x.dim()
    for k, axis in enumerate(along):
        before[axis], after[axis] = given[k], given[half + k]
    mode = node.get("mode", "constant")
    if mode == "constant":
        filled = node.get("value", 0.0) if value is None or not value.numel() else value.item()
        return F.pad(x, flat_pads(before, after), value=filled)
    # Other modes pad at most three axes at a time: one after the other comes to the same.
    for axis in range(x.dim()):
        if before[axis] or after[axis]:
            moved = x.movedim(axis, -1)
            flat = moved.reshape(1, -1, moved.shape[-1])
            flat = F.pad(flat, (before[axis], after[axis]), mode=_PAD_MODES[mode])
            x = flat.reshape(*moved.shape[:-1], -1).movedim(-1, axis)
    return x


@SHAPE.operator("DepthToSpace")
def _depth_to_space(node: Node, x: Tensor) -> Tensor:
    block = int(node.get("blocksize"))
    if node.get("mode", "DCR") == "CRD":
        return F.pixel_shuffle(x, block)
    batch, channels, height, width = x.shape
    kept = channels // block**2
    split = x.reshape(batch, block, block, kept, height, width).permute(0, 3, 4, 1, 5, 2)
    return split.reshape(batch, kept, height * block, width * block)


@SHAPE.operator("SpaceToDepth")
def _space_to_depth(node: Node, x: Tensor) -> Tensor:
    block = int(node.get("blocksize"))
    batch, channels, height, width = x.shape
    rows, columns = height // block, width // block
    split = x.reshape(batch, channels, rows, block, columns, block).permute(0, 3, 5, 1, 2, 4)
    return split.reshape(batch, channels * block**2, rows, columns)


@SHAPE.operator("ReverseSequence")
def _reverse_sequence(node: Node, x: Tensor, lengths: Tensor) -> Tensor:
    time, batch = node.get("time_axis", 0), node.get("batch_axis", 1)
    turned = x.movedim((batch, time), (0, 1))
    place = torch.arange(turned.shape[1]).expand(turned.shape[0], -1)
    length = lengths.to(torch.int64)[:, None]
    place = torch.where(place < length, length - 1 - place, place)
    rows = torch.arange(turned.shape[0])[:, None]
    return turned[rows, place].movedim((0, 1), (batch, time))
