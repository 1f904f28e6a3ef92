"""Block pruning: residual blocks that the outputs hardly miss go as a whole."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from onnxslim_tk.errors import RecipeError
from onnxslim_tk.graph.blocks import Block, drop_block, nodes_behind, residual_blocks
from onnxslim_tk.graph.edit import drop_unused, output_names
from onnxslim_tk.graph.layers import layers
from onnxslim_tk.graph.model import Model
from onnxslim_tk.measure.observe import fetch
from onnxslim_tk.packing import packed_bytes
from onnxslim_tk.plan.proposal import Context, Observable, Proposal, Refusal
from onnxslim_tk.plan.work import layer_work, node_work
from onnxslim_tk.recover.in_order import comparable, refit_in_order
from onnxslim_tk.recover.rewrites import Rewrite, bearable

Array = NDArray[Any]
Key = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Blocks:
    """Residual blocks go: what they add becomes its mean.

    Each is tried alone and in the order of what it costs (Veit et al., 2016). They go as long as
    the model's outputs miss no more than ``max_error``, the relative squared error on samples
    before anything is refitted. Then the layers behind them are refitted one after the other to
    what they gave, unless ``recover`` is off.
    """

    name: ClassVar[str] = "blocks"
    main: ClassVar[str] = "max_error"
    observes: ClassVar[frozenset[Observable]] = frozenset()

    max_error: float = 0.05
    recover: bool = True

    def __post_init__(self) -> None:
        if not self.max_error >= 0:
            raise RecipeError(f"blocks: max_error must be 0 or more, got {self.max_error}")

    def propose(self, model: Model, context: Context) -> Iterator[Proposal | Refusal]:
        """One row a block that the outputs bear to lose; takes samples."""
        tuned = {
            block.key: [context.tuned(self, layer.names) for layer in block.layers]
            for block in residual_blocks(model, context.shapes)
        }
        found = [
            block
            for block in residual_blocks(model, context.shapes)
            if None not in tuned[block.key]
        ]
        means = _means(model, found, context)

        def rewrite(block: Block) -> Rewrite:
            most = min(t.max_error for t in tuned[block.key] if t is not None)
            row = _row(self, block, means.get(block.key), context)
            return Rewrite(row, lambda twin: _drop(twin, [row], context), most)

        yield from bearable(model, [rewrite(block) for block in found], context)

    def apply(self, model: Model, chosen: Sequence[Proposal], context: Context) -> None:
        """Drop the chosen blocks, and refit what comes behind them."""
        wanted = {row.targets for row in chosen}
        found = [b for b in residual_blocks(model, context.shapes) if b.key in wanted]
        missing = wanted - {block.key for block in found}
        if missing:
            raise RecipeError(
                f"blocks: the model has no residual block of '{', '.join(sorted(missing)[0])}'"
            )
        original = comparable(context.reference, model).copy()
        behind = nodes_behind(block.sum.outputs[0] for block in found)
        reading = frozenset(layer.id for layer in layers(model) if id(layer.node) in behind)
        _drop(model, chosen, context)
        if self.recover and len(context.feeds) > 1:
            outputs = output_names(model)
            refit_in_order(model, original, reading, {}, context.feeds, outputs, context.seed)


def _means(model: Model, found: Sequence[Block], context: Context) -> dict[Key, Array]:
    """The mean of what each block adds, ``(channels,)``; empty without samples."""
    totals: dict[Key, Array] = {}
    names = [block.branch.name for block in found]
    for values in fetch(model, names, context.feeds) if names and context.feeds else ():
        for block in found:
            given = np.moveaxis(values[block.branch.name], block.channel_axis, 0)
            mean = given.reshape(len(given), -1).mean(1, dtype=np.float64)
            totals[block.key] = totals.get(block.key, np.zeros(len(mean))) + mean
    return {key: total / len(context.feeds) for key, total in totals.items()}


def _drop(model: Model, chosen: Sequence[Proposal], context: Context) -> None:
    rows = {row.targets: row for row in chosen}
    for block in residual_blocks(model, context.shapes):
        if block.key in rows:
            kind = block.branch.dtype or np.float32
            mean = np.array(rows[block.key].details["mean"], kind)
            drop_block(model, block, mean, len(context.shapes[block.branch.name]))
    drop_unused(model)


def _row(method: Blocks, block: Block, mean: Array | None, context: Context) -> Proposal:
    work = [layer_work(layer, context.shapes) for layer in block.layers]
    weighing = {id(layer.node) for layer in block.layers}
    channels = 0 if mean is None else len(mean)
    others = [node_work(n, context.shapes) for n in block.nodes if id(n) not in weighing]
    return Proposal(
        block.key,
        method.name,
        "drop",
        {"mean": [] if mean is None else mean.tolist()},
        bytes_saved=sum(packed_bytes(layer.weight) for layer in block.layers) - 4 * channels,
        macs_saved=sum(w.macs for w in work if w is not None),
        cost_saved=sum(context.target.float_time(w) for w in (*work, *others) if w is not None),
    )
