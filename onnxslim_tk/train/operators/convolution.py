"""Convolution, its transpose, and pooling, with all ways of padding."""

from collections.abc import Sequence
from math import inf

import torch
import torch.nn.functional as F  # noqa: N812

from onnxslim_tk.train.rules import Node, Rules, Tensor, flat_pads

CONVOLUTION = Rules()
_CONV = (F.conv1d, F.conv2d, F.conv3d)
_TRANSPOSE = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)
_MAX = (F.max_pool1d, F.max_pool2d, F.max_pool3d)
_AVERAGE = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)


def _pads(
    node: Node, sizes: Sequence[int], kernel: Sequence[int], strides: list[int], steps: list[int]
) -> tuple[list[int], list[int]]:
    """Padding before and after each spatial axis."""
    rank = len(kernel)
    mode = node.get("auto_pad", "NOTSET")
    if mode == "NOTSET":
        pads = [int(n) for n in node.get("pads", [0] * 2 * rank)]
        return pads[:rank], pads[rank:]
    before, after = [0] * rank, [0] * rank
    if mode == "VALID":
        return before, after
    for k in range(rank):
        reach = (kernel[k] - 1) * steps[k] + 1
        total = max((-(-sizes[k] // strides[k]) - 1) * strides[k] + reach - sizes[k], 0)
        before[k] = total // 2 if mode == "SAME_UPPER" else total - total // 2
        after[k] = total - before[k]
    return before, after


def _window(node: Node, rank: int) -> tuple[list[int], list[int]]:
    if not 1 <= rank <= 3:
        raise node.refuse(f"{rank} spatial axes")
    return list(node.get("strides", [1] * rank)), list(node.get("dilations", [1] * rank))


@CONVOLUTION.operator("Conv")
def convolve(node: Node, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Convolution of any rank from 1 to 3."""
    rank = weight.dim() - 2
    strides, steps = _window(node, rank)
    before, after = _pads(node, x.shape[2:], weight.shape[2:], strides, steps)
    if before != after:
        x, before = F.pad(x, flat_pads(before, after)), [0] * rank
    return _CONV[rank - 1](x, weight, bias, strides, before, steps, node.get("group", 1))


@CONVOLUTION.operator("ConvTranspose")
def _conv_transpose(node: Node, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    rank = weight.dim() - 2
    strides, steps = _window(node, rank)
    extra = list(node.get("output_padding", [0] * rank))
    mode = node.get("auto_pad", "NOTSET")
    pads = [int(n) for n in node.get("pads", [0] * 2 * rank)]
    before, after = pads[:rank], pads[rank:]
    wanted = node.get("output_shape")
    if wanted is not None or mode.startswith("SAME"):
        sizes = [n * s for n, s in zip(x.shape[2:], strides, strict=True)]
        wanted = sizes if wanted is None else list(wanted)[-rank:]
        for k in range(rank):
            reach = (weight.shape[2 + k] - 1) * steps[k] + 1
            total = strides[k] * (x.shape[2 + k] - 1) + extra[k] + reach - wanted[k]
            # Negative where the output is to be larger than what the kernel reaches.
            after[k] = total // 2 if mode != "SAME_UPPER" else total - total // 2
            before[k] = total - after[k]
    function, group = _TRANSPOSE[rank - 1], node.get("group", 1)
    same = before == after and min(before) >= 0
    if same and all(e < max(s, d) for e, s, d in zip(extra, strides, steps, strict=True)):
        return function(x, weight, bias, strides, before, extra, group, steps)
    full = function(x, weight, bias, strides, 0, 0, group, steps)
    cut = [-n for n in before], [e - n for e, n in zip(extra, after, strict=True)]
    if bias is None or not any(n > 0 for side in cut for n in side):
        return F.pad(full, flat_pads(*cut))
    plain = F.pad(function(x, weight, None, strides, 0, 0, group, steps), flat_pads(*cut))
    return plain + bias.reshape(-1, *[1] * rank)


@CONVOLUTION.operator("MaxPool")
def _max_pool(node: Node, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
    kernel = list(node.get("kernel_shape"))
    rank = len(kernel)
    strides, steps = _window(node, rank)
    before, after = _pads(node, x.shape[2:], kernel, strides, steps)
    wide = any(2 * n > size for n, size in zip(before, kernel, strict=True))
    indices = node.outputs > 1
    if indices and (before != after or wide or node.get("storage_order", 0)):
        raise node.refuse("indices and such padding")
    if before != after or wide:
        x, before = F.pad(x, flat_pads(before, after), value=-inf), [0] * rank
    ceil = bool(node.get("ceil_mode", 0))
    found = _MAX[rank - 1](x, kernel, strides, before, steps, ceil, indices)
    if not indices:
        return found
    values, places = found
    planes = torch.arange(x.shape[0] * x.shape[1]) * x[0, 0].numel()
    return values, places + planes.reshape(x.shape[0], x.shape[1], *[1] * rank)


@CONVOLUTION.operator("AveragePool")
def _average_pool(node: Node, x: Tensor) -> Tensor:
    kernel = list(node.get("kernel_shape"))
    rank = len(kernel)
    strides, steps = _window(node, rank)
    if steps != [1] * rank:
        raise node.refuse("dilations")
    before, after = _pads(node, x.shape[2:], kernel, strides, steps)
    counts, ceil = bool(node.get("count_include_pad", 0)), bool(node.get("ceil_mode", 0))
    pool = _AVERAGE[rank - 1]
    if before == after and all(2 * n <= size for n, size in zip(before, kernel, strict=True)):
        return pool(x, kernel, strides, before, ceil, counts)
    if ceil and counts:
        raise node.refuse("a last window beyond the padding, which counts")
    pads = flat_pads(before, after)
    values = pool(F.pad(x, pads), kernel, strides, 0, ceil)
    if counts:
        return values
    inside = F.pad(torch.ones_like(x[:1, :1]), pads)
    return values / pool(inside, kernel, strides, 0, ceil)


@CONVOLUTION.operator("GlobalAveragePool")
def _global_average_pool(node: Node, x: Tensor) -> Tensor:
    return x.mean(tuple(range(2, x.dim())), keepdim=True)


@CONVOLUTION.operator("GlobalMaxPool")
def _global_max_pool(node: Node, x: Tensor) -> Tensor:
    flat = x.flatten(2).max(2).values
    return flat.reshape(*x.shape[:2], *[1] * (x.dim() - 2))
