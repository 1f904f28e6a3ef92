"""Nets in PyTorch that benchmarks train and export."""

import io
from collections.abc import Sequence
from itertools import pairwise

import onnx
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812


class _Block(nn.Module):
    """Two convolutions with batch normalization beside a shortcut (He et al., 2016)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.first_norm = nn.BatchNorm2d(outputs)
        self.second = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.second_norm = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.first_norm(self.first(x)))
        y = self.second_norm(self.second(y))
        return F.relu(y + self.shortcut(x))


class SmallResNet(nn.Module):
    """Four stages of two blocks as in ResNet-18, ``width`` channels in the first."""

    def __init__(self, width: int, classes: int, inputs: int = 3, stride: int = 1) -> None:
        super().__init__()
        self.stem = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.stem_norm = nn.BatchNorm2d(width)
        stages, before = [], width
        for stage in range(4):
            after = width << stage
            stages += [_Block(before, after, 1 if stage == 0 else 2), _Block(after, after, 1)]
            before = after
        self.stages = nn.Sequential(*stages)
        self.head = nn.Linear(before, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps images ``(n, inputs, h, w)`` to scores ``(n, classes)``."""
        y = self.stages(F.relu(self.stem_norm(self.stem(x))))
        return self.head(y.mean((2, 3)))


class TinyNet(nn.Module):
    """Three strided convolutions and a head for each task, for images of 28 x 28 pixels."""

    def __init__(self, tasks: Sequence[int], inputs: int = 1, width: int = 4) -> None:
        super().__init__()
        widths = (inputs, width, 2 * width, 4 * width)
        self.layers = nn.ModuleList(nn.Conv2d(a, b, 3, 2, 1) for a, b in pairwise(widths))
        self.heads = nn.ModuleList(nn.Linear(64 * width, classes) for classes in tasks)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Maps images ``(n, inputs, h, w)`` to scores ``(n, classes)``, one a task."""
        for layer in self.layers:
            x = F.relu(layer(x))
        x = x.flatten(1)
        return tuple(head(x) for head in self.heads)


class _Layer(nn.Module):
    """Attention and a feed-forward net, each with a normalization behind it, as in BERT."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.merge = (nn.Linear(width, width) for _ in range(4))
        self.rise, self.fall = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.first_norm, self.second_norm = nn.LayerNorm(width), nn.LayerNorm(width)

    def _split(self, x: torch.Tensor) -> torch.Tensor:
        return x.reshape(x.shape[0], x.shape[1], self.heads, -1).transpose(1, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        query, key, value = (self._split(f(x)) for f in (self.query, self.key, self.value))
        scores = query @ key.transpose(-1, -2) / (query.shape[-1] ** 0.5)
        mixed = (torch.softmax(scores, -1) @ value).transpose(1, 2).reshape(x.shape)
        x = self.first_norm(x + self.merge(mixed))
        return self.second_norm(x + self.fall(F.gelu(self.rise(x))))


class MiniTransformer(nn.Module):
    """Six layers of 384 numbers and 12 heads, as MiniLM-L6 has them (Wang et al., 2020)."""

    def __init__(self, words: int = 4000, length: int = 128, width: int = 384) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(words, width), nn.Embedding(length, width)
        self.norm = nn.LayerNorm(width)
        self.layers = nn.Sequential(*(_Layer(width, 12) for _ in range(6)))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Maps ids ``(n, length)`` to vectors ``(n, length, width)``."""
        places = torch.arange(ids.shape[1])
        return self.layers(self.norm(self.words(ids) + self.places(places)))


def exported(
    net: nn.Module, batch: torch.Tensor, outputs: Sequence[str] = ("y",)
) -> onnx.ModelProto:
    """The net as ONNX, with a free first axis, ``x`` to ``outputs``, nothing folded."""
    buffer = io.BytesIO()
    torch.onnx.export(
        net,
        (batch,),
        buffer,
        dynamo=False,
        training=torch.onnx.TrainingMode.PRESERVE,
        do_constant_folding=False,
        opset_version=17,
        input_names=["x"],
        output_names=list(outputs),
        dynamic_axes={name: {0: "n"} for name in ("x", *outputs)},
    )
    return onnx.load_model_from_string(buffer.getvalue())
