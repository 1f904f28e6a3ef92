"""Normalization, scaling, shifting and padding folded into the layers beside them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from onnxslim_tk.graph.fusion import Fusion
from onnxslim_tk.graph.model import Model
from onnxslim_tk.plan.proposal import Context, Observable, Proposal, Refusal


@dataclass(frozen=True, slots=True)
class Fuse:
    """Exact fusion: what scales, shifts or pads beside a layer goes into its own constants.

    A BatchNormalization goes into the layer before it, or else into the layers behind it where
    nothing is padded; a Mul, Div, Add or Sub with constants behind a layer goes into its weight
    and bias; zeros that a Pad puts around a Conv's input become the Conv's own. Outputs stay the
    same up to float rounding. What onnxruntime fuses at load is left to it.
    """

    name: ClassVar[str] = "fuse"
    main: ClassVar[str] = ""
    observes: ClassVar[frozenset[Observable]] = frozenset()

    def propose(self, model: Model, context: Context) -> Iterator[Proposal | Refusal]:
        """One row per layer that takes something in, and why a normalization must stay."""
        fusion = Fusion(model.copy())
        sites = [s for s in fusion.sites() if context.tuned(self, s.names) is not None]
        fusion.fuse(sites)
        for site in sites:
            if site.folded:
                details = {"folded": list(site.folded)}
                setting = "+".join(site.operators)
                yield Proposal((site.names[0],), self.name, setting, details, site.saved)
        for names, reason in fusion.left():
            if context.tuned(self, names) is not None:
                yield Refusal(names[0], self.name, reason)

    def apply(self, model: Model, chosen: Sequence[Proposal], context: Context) -> None:
        """Fold all that can be into the chosen layers, also what came to lie beside them since."""
        targets = {row.targets[0] for row in chosen}
        fusion = Fusion(model)
        fusion.fuse(site for site in list(fusion.sites()) if site.names[0] in targets)
