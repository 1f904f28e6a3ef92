"""Operators written another way: the same values, in a form that the runtime runs faster."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from onnxslim_tk.graph.equivalents import Equivalent, equivalents, rewrite
from onnxslim_tk.graph.model import Model
from onnxslim_tk.plan.proposal import Context, Observable, Proposal, Refusal


@dataclass(frozen=True, slots=True)
class Canonicalize:
    """Exact rewriting: what exporters spell out becomes the operator that it stands for.

    ``clip(x + 3, 0, 6) / 6``, as HardSwish is often written, becomes a HardSigmoid; a
    ConvTranspose whose tiles don't overlap becomes a 1x1 Conv and a DepthToSpace, which have
    integer kernels. A product with one-hot rows becomes a look-up, and the table holds what is
    done to each of its rows behind. The greatest value of a function along an axis is taken of
    the ends of its argument: of ``max(gelu(x))`` only the gelu of the greatest and the least
    ``x`` remain. Outputs stay the same up to float rounding.
    """

    name: ClassVar[str] = "canonicalize"
    main: ClassVar[str] = ""
    observes: ClassVar[frozenset[Observable]] = frozenset()

    def propose(self, model: Model, context: Context) -> Iterator[Proposal | Refusal]:
        """One row per rewrite, with the bytes that it saved on a copy of the model."""
        twin = model.copy()
        for found, names in _named(twin):
            if found.stands and context.tuned(self, names) is not None:
                saved = rewrite(twin, found)
                yield Proposal((names[0],), self.name, found.kind, bytes_saved=saved)

    def apply(self, model: Model, chosen: Sequence[Proposal], context: Context) -> None:
        """Make the chosen rewrites."""
        targets = {row.targets[0] for row in chosen}
        for found, names in _named(model):
            if found.stands and names[0] in targets:
                rewrite(model, found)


def _named(model: Model) -> list[tuple[Equivalent, tuple[str, ...]]]:
    """The rewrites, each with the names of the node that it is about."""
    keys = [(found, found.path + found.node.outputs[0].name) for found in equivalents(model)]
    return [(found, model.origins.get(key, (key,))) for found, key in keys]
