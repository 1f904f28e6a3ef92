"""Training in several processes, as torchrun starts them: each learns from its share."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import distributed, nn

from onnxslim_tk.errors import TrainingError


@contextmanager
def processes() -> Iterator[bool]:
    """Join the processes of torchrun, where there are any; gives whether this is the first."""
    size = os.environ.get("WORLD_SIZE", "1")
    if size == "1" or not distributed.is_available() or distributed.is_initialized():
        yield rank() == 0
        return
    try:
        distributed.init_process_group("gloo")
    except (ValueError, RuntimeError) as error:
        message = " ".join(str(error).split())
        raise TrainingError(f"train: the {size} processes can't meet: {message}") from error
    try:
        yield rank() == 0
    finally:
        distributed.destroy_process_group()


@contextmanager
def threads(count: int) -> Iterator[None]:
    """PyTorch computes in ``count`` threads in the block, -1 for all processors."""
    before = torch.get_num_threads()
    torch.set_num_threads(count if count > 0 else os.cpu_count() or 1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _together() -> bool:
    return distributed.is_available() and distributed.is_initialized()


def rank() -> int:
    """The number of this process, the first being 0."""
    return int(distributed.get_rank()) if _together() else 0


def count() -> int:
    """How many processes train together."""
    return int(distributed.get_world_size()) if _together() else 1


def shared(module: nn.Module) -> nn.Module:
    """``module``, with gradients that are the mean over all processes."""
    if count() == 1:
        return module
    return nn.parallel.DistributedDataParallel(
        module, broadcast_buffers=False, find_unused_parameters=True
    )


def gathered(value: Any) -> list[Any]:
    """What each process gives as ``value``, in their order, in every one of them."""
    if count() == 1:
        return [value]
    found: list[Any] = [None] * count()
    distributed.all_gather_object(found, value)
    return found
