"""The space: every lossy choice that the passes propose for a model, by stage."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import log, prod
from typing import Any, Final

from onnxslim_tk.graph.layers import layers
from onnxslim_tk.graph.model import Model
from onnxslim_tk.pipeline.stages import Begun
from onnxslim_tk.pipeline.stepping import lossless
from onnxslim_tk.plan.knapsack import alternatives
from onnxslim_tk.plan.proposal import Proposal
from onnxslim_tk.plan.recipe import Stage
from onnxslim_tk.plan.work import layer_work

Genome = tuple[int, ...]
"""A plan as one level for each gene: 0 leaves its targets alone, the k-th takes option k - 1."""

RECIPE: Final = """
name: search
stages:
  clean: [clean]
  fuse: [fuse]
  canonicalize: [canonicalize]
  structure: [{channels: {keep: 0.25}}, factorize]
  equalize: [equalize]
  sparsify: [sparsify]
  share: [share]
  numbers: [quantize, dynamic_int8]
"""
"""What is searched where the user names no recipe: all methods, mild and strong."""

_TINY: Final = 1e-12


@dataclass(frozen=True, slots=True)
class Gene:
    """What can be done to ``targets`` in a stage: options from mild to strong, at most one."""

    stage: str
    targets: tuple[str, ...]
    options: tuple[Proposal, ...]


@dataclass(frozen=True, slots=True)
class Extent:
    """What a layer of the model takes: bytes of its dense weight, MACs and table time of a run."""

    bytes: int
    macs: int
    time: float


@dataclass(frozen=True, slots=True)
class Space:
    """All genes in the order of stages, and the extents of the layers that they change."""

    genes: tuple[Gene, ...]
    extents: Mapping[str, Extent]

    @property
    def sizes(self) -> tuple[int, ...]:
        """The number of levels of each gene, that of doing nothing included."""
        return tuple(len(gene.options) + 1 for gene in self.genes)

    @property
    def untouched(self) -> Genome:
        """The genome that loses nothing."""
        return (0,) * len(self.genes)

    def clipped(self, genome: Sequence[int]) -> Genome:
        """``genome`` with each level inside its gene's range."""
        pairs = zip(genome, self.sizes, strict=True)
        return tuple(min(max(int(level), 0), size - 1) for level, size in pairs)

    def chosen(self, genome: Genome) -> Iterator[tuple[Gene, Proposal]]:
        """The genes that do something, each with its option."""
        for gene, level in zip(self.genes, genome, strict=True):
            if level:
                yield gene, gene.options[level - 1]

    def name(self, k: int) -> str:
        """A name for gene number ``k`` that no other has."""
        gene = self.genes[k]
        return f"{k} {gene.stage} {gene.targets[0]}"

    def with_errors(self, errors: Mapping[tuple[int, int], float]) -> "Space":
        """The space with measured errors of some options, by gene and level; others scale along."""
        return replace(
            self, genes=tuple(_measured(gene, k, errors) for k, gene in enumerate(self.genes))
        )

    def data(self) -> dict[str, Any]:
        """The space as plain JSON data."""
        return {
            "genes": [
                {
                    "stage": gene.stage,
                    "targets": list(gene.targets),
                    "options": [asdict(option) for option in gene.options],
                }
                for gene in self.genes
            ],
            "extents": {name: asdict(extent) for name, extent in self.extents.items()},
        }


def _measured(gene: Gene, k: int, errors: Mapping[tuple[int, int], float]) -> Gene:
    known = {
        level: errors[k, level] for level in range(len(gene.options) + 1) if (k, level) in errors
    }
    if not known:
        return gene
    options = []
    for level, option in enumerate(gene.options, start=1):
        same = {m: e for m, e in known.items() if gene.options[m - 1].method == option.method}
        near = min(same or known, key=lambda m: abs(m - level))
        base = gene.options[near - 1].error
        scale = option.error / base if base > _TINY else 1.0
        error = known[near] if near == level else known[near] * scale
        options.append(replace(option, error=min(error, 1e9), measured=near == level))
    return replace(gene, options=tuple(options))


class Scout:
    """A chooser that loses nothing and notes down what could be done."""

    def __init__(self) -> None:
        self._genes: list[Gene] = []
        self._extents: dict[str, Extent] = {}

    def __call__(
        self, stage: Stage, proposals: Sequence[Proposal], model: Model, begun: Begun
    ) -> list[Proposal]:
        """The lossless rows of the stage."""
        lossy: dict[tuple[str, ...], list[Proposal]] = {}
        for row in proposals:
            if row.error > 0:
                lossy.setdefault(row.targets, []).append(replace(row, details={}, why=""))
        for targets, rows in lossy.items():
            options = ordered(rows)
            if options:
                self._genes.append(Gene(stage.name, targets, options))
        if lossy:
            self._measure(model, begun)
        return lossless(stage, proposals, model, begun)

    def space(self) -> Space:
        """What was seen."""
        wanted = {target for gene in self._genes for target in gene.targets}
        return Space(tuple(self._genes), {n: e for n, e in self._extents.items() if n in wanted})

    def _measure(self, model: Model, begun: Begun) -> None:
        context = begun.context
        for layer in layers(model):
            if layer.id not in self._extents:
                work = layer_work(layer, context.shapes)
                macs, time = (
                    (0, 0.0) if work is None else (work.macs, context.target.float_time(work))
                )
                self._extents[layer.id] = Extent(prod(layer.shape) * 4, macs, time)


def ordered(rows: Sequence[Proposal]) -> tuple[Proposal, ...]:
    """Options from mild to strong, without those that another beats in everything."""
    kept = [row for row in rows if not any(_beats(other, row) for other in rows)]
    return tuple(sorted(kept, key=lambda r: (r.error, r.bytes_saved, r.method, str(r.setting))))


def _beats(row: Proposal, other: Proposal) -> bool:
    ours = row.bytes_saved, row.macs_saved, row.cost_saved, -row.error
    theirs = other.bytes_saved, other.macs_saved, other.cost_saved, -other.error
    return ours != theirs and all(a >= b for a, b in zip(ours, theirs, strict=True))


class Decoder:
    """A chooser that carries a genome out.

    Every genome is a legal plan: what an earlier choice has made impossible gives way to the
    nearest setting that is offered, a part of a split layer follows the gene of the whole, and of
    two methods that exclude each other the gene that comes first is heard. What loses nothing is
    always done.
    """

    def __init__(self, space: Space, genome: Genome) -> None:
        self._space = space
        self._wanted: dict[str, list[tuple[Gene, Proposal]]] = {}
        for gene, option in space.chosen(genome):
            self._wanted.setdefault(gene.stage, []).append((gene, option))

    def __call__(
        self, stage: Stage, proposals: Sequence[Proposal], model: Model, begun: Begun
    ) -> list[Proposal]:
        """The rows of this genome in the stage."""
        taken: list[Proposal] = []
        lossy = [group for group in alternatives(proposals) if any(p.error > 0 for p in group)]
        wanted = self._wanted.get(stage.name, [])
        for gene, option in wanted:
            for row in _offered(gene, option, lossy, self._heirs(stage, lossy, model)):
                if not _clashes(row, taken):
                    taken.append(row)
        for row in lossless(stage, proposals, model, begun):
            if not _clashes(row, taken):
                taken.append(row)
        order = {id(p): k for k, p in enumerate(proposals)}
        return sorted(taken, key=lambda p: order[id(p)])

    def _heirs(
        self, stage: Stage, lossy: Sequence[Sequence[Proposal]], model: Model
    ) -> dict[tuple[str, ...], tuple[str, ...]]:
        """Targets that no gene has, and those of the layers that they came from."""
        known = {gene.targets for gene in self._space.genes if gene.stage == stage.name}
        names = {target for targets in known for target in targets}
        strange = [group[0].targets for group in lossy if group[0].targets not in known]
        if not strange:
            return {}
        origins = {
            layer.id: next((n for n in layer.names if n in names), layer.id)
            for layer in layers(model)
        }
        return {targets: tuple(origins.get(t, t) for t in targets) for targets in strange}


def _offered(
    gene: Gene,
    option: Proposal,
    lossy: Sequence[Sequence[Proposal]],
    heirs: Mapping[tuple[str, ...], tuple[str, ...]],
) -> Iterator[Proposal]:
    """The row that ``option`` asks for, of its targets and of those that came from them."""
    for targets in (gene.targets, *(t for t, origin in heirs.items() if origin == gene.targets)):
        rows = [p for group in lossy for p in group if p.targets == targets]
        same = [p for p in rows if p.method == option.method] or rows
        if same:
            yield min(same, key=lambda p: _distance(p, option))


def _distance(row: Proposal, option: Proposal) -> tuple[bool, float]:
    wanted, offered = max(option.error, _TINY), max(row.error, _TINY)
    return row.setting != option.setting, abs(log(offered) - log(wanted))


def _clashes(row: Proposal, taken: Sequence[Proposal]) -> bool:
    """Whether a row can't be done beside those: another setting, or another method there."""
    return any(
        row.targets == other.targets
        if row.method == other.method
        else not set(row.targets).isdisjoint(other.targets)
        for other in taken
    )
