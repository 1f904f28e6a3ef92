"""Block pruning: residual blocks that the outputs hardly miss go as a whole."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from onnxslim_tk.errors import RecipeError
from onnxslim_tk.graph.blocks import Block, nodes_behind, residual_blocks
from onnxslim_tk.graph.edit import output_names
from onnxslim_tk.graph.layers import layers
from onnxslim_tk.graph.model import Model
from onnxslim_tk.packing import packed_bytes
from onnxslim_tk.plan.proposal import Context, Observable, Proposal, Refusal
from onnxslim_tk.plan.work import layer_work, node_work
from onnxslim_tk.recover.branches import branch_means, drop_blocks
from onnxslim_tk.recover.in_order import comparable, refit_in_order
from onnxslim_tk.recover.rewrites import Rewrite, bearable

Array = NDArray[Any]


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
    whole: ClassVar[frozenset[str]] = frozenset({"recover"})

    max_error: float = 0.05
    recover: bool = True

    def __post_init__(self) -> None:
        if not self.max_error >= 0:
            raise RecipeError(f"blocks: max_error must be 0 or more, got {self.max_error}")

    def propose(self, model: Model, context: Context) -> Iterator[Proposal | Refusal]:
        """One row a block that the outputs bear to lose; takes samples."""
        found: list[tuple[Block, float]] = []
        for block in residual_blocks(model, context.shapes):
            tuned = [context.tuned(self, layer.names) for layer in block.layers]
            given = [each.max_error for each in tuned if each is not None]
            if len(given) == len(tuned):
                found.append((block, min(given)))
        means = branch_means(model, [b for b, _ in found], context.feeds, context.shapes)
        rewrites = []
        for block, most in found:
            row = _row(self, block, means[block.key], context)
            rewrites.append(Rewrite(row, partial(_drop, chosen=[row], context=context), most))
        yield from bearable(model, rewrites, context, apart=True)

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
        behind = nodes_behind(model, [block.sum.outputs[0] for block in found])
        reading = frozenset(layer.id for layer in layers(model) if id(layer.node) in behind)
        _drop(model, chosen, context)
        if self.recover and len(context.feeds) > 1:
            outputs = output_names(model)
            refit_in_order(model, original, reading, {}, context.feeds, outputs, context.seed)


def _drop(model: Model, chosen: Sequence[Proposal], context: Context) -> None:
    means = {
        row.targets: np.array(
            row.details["mean"], np.float16 if row.details.get("half") else np.float32
        )
        for row in chosen
    }
    drop_blocks(model, means, context.shapes)


def _row(method: Blocks, block: Block, mean: Array, context: Context) -> Proposal:
    work = [layer_work(layer, context.shapes) for layer in block.layers]
    weighing = {id(layer.node) for layer in block.layers}
    others = [node_work(n, context.shapes) for n in block.nodes if id(n) not in weighing]
    return Proposal(
        block.key,
        method.name,
        "drop",
        {"mean": mean.tolist(), "half": mean.dtype == np.float16},
        bytes_saved=sum(packed_bytes(layer.weight) for layer in block.layers) - mean.nbytes,
        macs_saved=sum(w.macs for w in work if w is not None),
        cost_saved=sum(context.target.float_time(w) for w in (*work, *others) if w is not None),
    )
