"""A step of training in PyTorch, and the same one of the exported graph."""

import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import Final

import torch

from benchmarks.nets import MiniTransformer, SmallResNet, exported
from onnxslim_tk.graph.model import from_proto
from onnxslim_tk.train.module import GraphModule

_WARM_UP: Final = 3
_ROUNDS: Final = 15


def _pictures() -> tuple[torch.nn.Module, torch.Tensor]:
    return SmallResNet(width=32, classes=100), torch.randn(8, 3, 64, 64)


def _sentences() -> tuple[torch.nn.Module, torch.Tensor]:
    return MiniTransformer(), torch.randint(0, 4000, (4, 128))


STEPS: Final[Mapping[str, Callable[[], tuple[torch.nn.Module, torch.Tensor]]]] = {
    "ResNet-18-like": _pictures,
    "MiniLM-like": _sentences,
}
"""The nets, each with a batch of inputs."""


def step_ratio(name: str, rounds: int = _ROUNDS) -> tuple[str, str, str]:
    """Milliseconds of a step of PyTorch, of ours, and their ratio: medians, in turn."""
    torch.manual_seed(0)
    net, batch = STEPS[name]()
    # In evaluation mode, as the file's statistics stay: both do the same work.
    net.eval()
    module = GraphModule(from_proto(proto := exported(net, batch), proto.SerializeToString()))
    target = torch.randn_like(net(batch).detach())
    sides: list[tuple[torch.nn.Module, Callable[[], torch.Tensor]]] = [
        (net, lambda: net(batch)),
        (module, lambda: module({"x": batch})["y"]),
    ]
    optimizers = [torch.optim.AdamW(side.parameters(), lr=1e-4) for side, _ in sides]
    times: list[list[float]] = [[], []]
    for number in range(_WARM_UP + rounds):
        for (_, run), optimizer, timed in zip(sides, optimizers, times, strict=True):
            start = time.process_time()
            optimizer.zero_grad(set_to_none=True)
            ((run() - target) ** 2).mean().backward()
            optimizer.step()
            if number >= _WARM_UP:
                timed.append(time.process_time() - start)
    plain, ours = (median(timed) * 1e3 for timed in times)
    ratio = median(b / a for a, b in zip(*times, strict=True))
    return f"{plain:.0f}", f"{ours:.0f}", f"{ratio:.2f}"
