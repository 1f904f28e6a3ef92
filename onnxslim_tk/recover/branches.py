"""Residual blocks that go: what they add on average stays."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxslim_tk.errors import RecipeError
from onnxslim_tk.graph.blocks import Block, Shapes, drop_block, residual_blocks
from onnxslim_tk.graph.edit import drop_unused
from onnxslim_tk.graph.model import Model
from onnxslim_tk.measure.observe import fetch
from onnxslim_tk.measure.runtime import Feed

Means = Mapping[tuple[str, ...], NDArray[Any]]
"""By the key of a block the mean of what it adds, ``(channels,)``, in its type."""


def branch_means(
    model: Model, found: Sequence[Block], feeds: Sequence[Feed], shapes: Shapes
) -> dict[tuple[str, ...], NDArray[Any]]:
    """What each block adds on average; zeros without samples."""
    sizes = {b.key: shapes[b.branch.name][b.channel_axis] for b in found}
    totals = {key: np.zeros(size) for key, size in sizes.items()}
    kinds: dict[tuple[str, ...], Any] = {
        b.key: np.float16 if b.layers[-1].is_half else np.float32 for b in found
    }
    names = [block.branch.name for block in found]
    for values in fetch(model, names, feeds) if found and feeds else ():
        for block in found:
            given = np.moveaxis(values[block.branch.name], block.channel_axis, 0)
            totals[block.key] += given.reshape(len(given), -1).mean(1, dtype=np.float64)
            kinds[block.key] = given.dtype
    return {key: (sum_ / max(len(feeds), 1)).astype(kinds[key]) for key, sum_ in totals.items()}


def drop_blocks(model: Model, means: Means, shapes: Shapes) -> None:
    """Put its mean in the place of each block; RecipeError for one of other channels."""
    for block in residual_blocks(model, shapes):
        mean = means.get(block.key)
        if mean is None:
            continue
        size = shapes[block.branch.name][block.channel_axis]
        if len(mean) != size:
            raise RecipeError(f"blocks: mean must hold {size} numbers, got {len(mean)}")
        drop_block(model, block, mean)
    drop_unused(model)
