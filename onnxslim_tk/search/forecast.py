"""The forecast: what a genome would save and cost, without running it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from onnxslim_tk.search.space import Extent, Gene, Space

_STRONGEST = 0.98


@dataclass(frozen=True, slots=True)
class Forecast:
    """Shares of the layers' bytes, MACs and table time that stay, and the summed error."""

    size: float
    macs: float
    latency: float
    error: float


@dataclass(frozen=True, slots=True)
class Effect:
    """Shares of the targets' bytes, MACs and time that an option saves, and its error."""

    size: float = 0.0
    macs: float = 0.0
    time: float = 0.0
    error: float = 0.0


class Forecaster:
    """Foretells from the savings of single options.

    What takes multiply-accumulates away (channels, factors) shrinks what later stages are left
    with, so its shares multiply; number formats and zeros don't add up, the strongest of them on
    a layer counts. Errors are taken as additive.
    """

    def __init__(self, space: Space) -> None:
        self._space = space
        extents = space.extents
        self._bytes = sum(e.bytes for e in extents.values()) or 1
        self._macs = sum(e.macs for e in extents.values()) or 1
        self._time = sum(e.time for e in extents.values()) or 1.0
        self._effects = [
            [_effect(gene, level, extents) for level in range(len(gene.options) + 1)]
            for gene in space.genes
        ]
        self._by_layer: dict[str, list[int]] = {name: [] for name in extents}
        for k, gene in enumerate(space.genes):
            for target in gene.targets:
                if target in self._by_layer:
                    self._by_layer[target].append(k)

    def error(self, k: int, level: int) -> float:
        """The expected error of gene ``k`` alone at ``level``."""
        return self._effects[k][level].error

    def effects(self, k: int) -> list[Effect]:
        """What gene ``k`` does at each of its levels."""
        return self._effects[k]

    def genes_of(self, layer: str) -> list[int]:
        """The genes that change a layer."""
        return self._by_layer[layer]

    def saving(self, k: int, level: int) -> tuple[float, float]:
        """The shares of all bytes and of all time that gene ``k`` alone saves at ``level``."""
        effect, extents = self._effects[k][level], self._space.extents
        found = [extents[t] for t in self._space.genes[k].targets if t in extents]
        size = sum(e.bytes for e in found) * effect.size / self._bytes
        time = sum(e.time for e in found) * effect.time / self._time
        return size, time

    def of(self, genome: Sequence[int]) -> Forecast:
        """What a whole genome is expected to come to."""
        size = macs = time = 0.0
        for name in self._by_layer:
            layer = self._layer(name, genome)
            size, macs, time = size + layer[0], macs + layer[1], time + layer[2]
        error = sum(self._effects[k][level].error for k, level in enumerate(genome))
        return Forecast(size / self._bytes, macs / self._macs, time / self._time, error)

    def change(self, genome: Sequence[int], k: int, level: int) -> Forecast:
        """By how much the forecast moves where gene ``k`` goes to ``level``."""
        other = [*genome[:k], level, *genome[k + 1 :]]
        size = macs = time = 0.0
        for name in self._space.genes[k].targets:
            if name in self._by_layer:
                before, after = self._layer(name, genome), self._layer(name, other)
                size += after[0] - before[0]
                macs += after[1] - before[1]
                time += after[2] - before[2]
        effects = self._effects[k]
        error = effects[level].error - effects[genome[k]].error
        return Forecast(size / self._bytes, macs / self._macs, time / self._time, error)

    def _layer(self, name: str, genome: Sequence[int]) -> tuple[float, float, float]:
        extent = self._space.extents[name]
        narrow = kept = 1.0
        format_size = format_time = 0.0
        for k in self._by_layer[name]:
            effect = self._effects[k][genome[k]]
            if effect.macs:
                narrow *= 1 - effect.size
                kept *= 1 - effect.macs
            else:
                format_size = max(format_size, effect.size)
                format_time = max(format_time, effect.time)
        return (
            extent.bytes * narrow * (1 - format_size),
            extent.macs * kept,
            extent.time * kept * (1 - format_time),
        )


def _effect(gene: Gene, level: int, extents: Mapping[str, Extent]) -> Effect:
    if not level:
        return Effect()
    option = gene.options[level - 1]
    found = [extents[t] for t in gene.targets if t in extents]
    totals = [sum(getattr(e, name) for e in found) for name in ("bytes", "macs", "time")]
    saved = (option.bytes_saved, option.macs_saved, option.cost_saved)
    shares = [
        min(max(part / whole, 0.0), _STRONGEST) if whole else 0.0
        for part, whole in zip(saved, totals, strict=True)
    ]
    return Effect(shares[0], shares[1], shares[2], option.error)
