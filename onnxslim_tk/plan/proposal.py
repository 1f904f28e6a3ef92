"""Proposals: rows of plain data that say what a method would do, save and cost."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from fnmatch import fnmatchcase
from typing import Any, ClassVar, Final, Literal, Protocol, TypeVar, runtime_checkable

from onnxslim_tk.errors import RecipeError
from onnxslim_tk.graph.model import Model
from onnxslim_tk.graph.weight_grid import WeightGrids
from onnxslim_tk.measure.observe import Statistics
from onnxslim_tk.measure.runtime import Feed
from onnxslim_tk.measure.threads import Item, Result, Threads
from onnxslim_tk.measure.validate import Progress, silent
from onnxslim_tk.plan.targets import Target

Observable = Literal["mean", "covariance", "range", "channels"]
LEAST_ERROR: Final = 1e-12
"""Of a row that may lose something that samples don't show; 0 says that nothing can be lost."""


@dataclass(frozen=True, slots=True)
class Proposal:
    """One thing that a method could do.

    ``targets`` are ids of layers; ``details`` is JSON that apply obeys instead of computing it
    twice; ``bytes_saved`` counts the packed file, ``macs_saved`` one run, ``cost_saved``
    microseconds of one run by the target's table; ``error`` is the expected relative squared
    error of what the targets put out (0: lossless), or of the model's outputs once this row or
    another setting of its targets was measured there; ``measured`` says that it was this one;
    ``why`` is for people: the reason that a chosen row was chosen for.
    """

    targets: tuple[str, ...]
    method: str
    setting: float | int | str
    details: Mapping[str, Any] = field(default_factory=dict)
    bytes_saved: int = 0
    macs_saved: int = 0
    cost_saved: float = 0.0
    error: float = 0.0
    measured: bool = False
    why: str = ""

    @property
    def is_last_resort(self) -> bool:
        """Whether it is only for a size that nothing else can meet."""
        return bool(self.details.get("last_resort"))


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a method leaves a layer alone, or does less to it than was asked for."""

    target: str
    method: str
    reason: str


@runtime_checkable
class Pass(Protocol):
    """A method: settings as fields, and two verbs.

    ``main`` names the field that a bare value in a recipe sets; ``observes`` what it asks
    of samples. One may name fields that no layer can have for itself as ``whole``.
    """

    name: ClassVar[str]
    main: ClassVar[str]
    observes: ClassVar[frozenset[Observable]]

    def propose(self, model: Model, context: "Context") -> Iterator[Proposal | Refusal]:
        """What could be done; only reads.

        For each target the setting asked for comes first, milder ones after it.
        """
        ...

    def apply(self, model: Model, chosen: Sequence[Proposal], context: "Context") -> None:
        """Do all the chosen rows at once, in place."""
        ...


AnyPass = TypeVar("AnyPass")


@dataclass(frozen=True, slots=True)
class Context:
    """What a pass may know beside the model.

    ``overrides`` are a recipe's per-layer settings, pattern and values by method, in order;
    ``statistics`` is None without samples; ``feeds`` are those for calibration; ``shapes`` are
    those seen in a run, by tensor name. ``reference`` is the model as it was before the first row
    that loses anything, None where that is the model itself. ``grids`` remembers what was found of
    weights; ``threads`` and ``progress`` are for work on many layers.
    """

    target: Target
    statistics: Statistics | None = None
    feeds: Sequence[Feed] = ()
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    overrides: tuple[tuple[str, Mapping[str, Any]], ...] = ()
    exclude: tuple[str, ...] = ()
    seed: int = 0
    reference: Model | None = None
    grids: WeightGrids = field(default_factory=WeightGrids)
    threads: Threads = field(default_factory=Threads)
    progress: Progress = silent

    def each(
        self, step: str, call: Callable[[Item], Result], items: Sequence[Item]
    ) -> Iterator[Result]:
        """What ``call`` gives for each item, in their order; ``step`` names it for progress."""
        for done, found in enumerate(self.threads.each(call, items)):
            self.progress(step, done, len(items))
            yield found

    def tuned(self, method: AnyPass, names: Sequence[str]) -> AnyPass | None:
        """``method`` with the settings for a layer of these names; None if it is to be left out.

        The last matching pattern wins, setting by setting.
        """
        if any(matches(pattern, names) for pattern in self.exclude):
            return None
        tuned: AnyPass | None = method
        for pattern, settings in self.overrides:
            name = method.name  # type: ignore[attr-defined]
            if name in settings and matches(pattern, names):
                tuned = with_settings(method if tuned is None else tuned, settings[name])
        return tuned


def matches(pattern: str, names: Sequence[str]) -> bool:
    """Whether a shell-style pattern fits any of a layer's names (case matters)."""
    return any(name == pattern or fnmatchcase(name, pattern) for name in names)


def with_settings(method: AnyPass, settings: Any) -> AnyPass | None:
    """``method`` with a mapping of fields, or with its main field, set; None for ``false``."""
    if settings is False or settings is None:
        return None
    if settings is True:
        return method
    name, main = method.name, method.main  # type: ignore[attr-defined]
    values = dict(settings) if isinstance(settings, Mapping) else {main: settings}
    known = {f.name for f in fields(method)}  # type: ignore[arg-type]
    unknown = sorted(set(values) - known)
    if unknown or "" in values:
        has = ", ".join(sorted(known)) or "none"
        raise RecipeError(
            f"{name}: there is no setting {unknown[0] if unknown else ''!r}; it has {has}"
        )
    return replace(method, **values)  # type: ignore[type-var]
