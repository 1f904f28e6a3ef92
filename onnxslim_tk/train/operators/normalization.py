"""Normalization with statistics of the file or of the tensor itself."""

from math import prod

import torch
import torch.nn.functional as F  # noqa: N812

from onnxslim_tk.train.rules import Node, Rules, Tensor, axis_of

NORMALIZATION = Rules()


@NORMALIZATION.operator("BatchNormalization")
def _batch_normalization(
    node: Node, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor
) -> Tensor:
    if node.get("training_mode", 0) or not node.get("spatial", 1) or node.outputs > 1:
        raise node.refuse("statistics of the batch")
    # The statistics stay those of the file: what is trained is what will run.
    return F.batch_norm(x, mean, variance, scale, bias, eps=node.get("epsilon", 1e-5))


@NORMALIZATION.operator("InstanceNormalization")
def _instance_normalization(node: Node, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    # Groups of one channel: unlike PyTorch's own, they may have a single element.
    return torch.group_norm(x, x.shape[1], scale, bias, node.get("epsilon", 1e-5))


@NORMALIZATION.operator("LayerNormalization")
def _layer_normalization(
    node: Node, x: Tensor, scale: Tensor, bias: Tensor | None = None
) -> Tensor | tuple[Tensor, ...]:
    axis = axis_of(node.get("axis", -1), x.dim())
    shape = x.shape[axis:]
    epsilon = node.get("epsilon", 1e-5)
    if scale.numel() == prod(shape) and (bias is None or bias.numel() == prod(shape)):
        flat = None if bias is None else bias.reshape(shape)
        found = F.layer_norm(x, shape, scale.reshape(shape), flat, epsilon)
    else:
        found = F.layer_norm(x, shape, eps=epsilon) * scale
        found = found if bias is None else found + bias
    if node.outputs == 1:
        return found
    axes = list(range(axis, x.dim()))
    mean = x.mean(axes, keepdim=True)
    variance = x.var(axes, correction=0, keepdim=True)
    return found, mean, torch.rsqrt(variance + epsilon)


@NORMALIZATION.operator("com.microsoft:SkipLayerNormalization")
def _skip_layer_normalization(
    node: Node,
    x: Tensor,
    skip: Tensor,
    scale: Tensor,
    shift: Tensor | None = None,
    bias: Tensor | None = None,
) -> tuple[Tensor, ...]:
    total = x + skip if bias is None else x + skip + bias
    found = F.layer_norm(total, scale.shape, scale, shift, node.get("epsilon", 1e-12))
    return found, found.new_empty(0), found.new_empty(0), total


@NORMALIZATION.operator("RMSNormalization", "SimplifiedLayerNormalization")
def _rms_normalization(node: Node, x: Tensor, scale: Tensor) -> Tensor:
    axes = list(range(axis_of(node.get("axis", -1), x.dim()), x.dim()))
    square = (x * x).mean(axes, keepdim=True)
    return x * torch.rsqrt(square + node.get("epsilon", 1e-5)) * scale


@NORMALIZATION.operator("GroupNormalization")
def _group_normalization(node: Node, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    groups = int(node.get("num_groups"))
    if node.opset < 21:
        # One pair of numbers per group, at first.
        width = x.shape[1] // groups
        scale, bias = scale.repeat_interleave(width), bias.repeat_interleave(width)
    return torch.group_norm(x, groups, scale, bias, node.get("epsilon", 1e-5))


@NORMALIZATION.operator("LpNormalization")
def _lp_normalization(node: Node, x: Tensor) -> Tensor:
    return F.normalize(x, node.get("p", 2), node.get("axis", -1), 1e-30)


@NORMALIZATION.operator("MeanVarianceNormalization")
def _mean_variance_normalization(node: Node, x: Tensor) -> Tensor:
    axes = list(node.get("axes", [0, 2, 3]))
    mean = x.mean(axes, keepdim=True)
    deviation = torch.sqrt(((x - mean) ** 2).mean(axes, keepdim=True))
    return (x - mean) / (deviation + 1e-9)


@NORMALIZATION.operator("LRN")
def _local_response_normalization(node: Node, x: Tensor) -> Tensor:
    size = int(node.get("size"))
    square = (x * x).flatten(2).unsqueeze(1)
    before = (size - 1) // 2
    padded = F.pad(square, (0, 0, before, size - 1 - before))
    total = F.avg_pool2d(padded, (size, 1), stride=1) * size
    scale = node.get("alpha", 1e-4) / size * total.reshape(x.shape) + node.get("bias", 1.0)
    return x / scale ** node.get("beta", 0.75)
