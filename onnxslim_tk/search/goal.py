"""The goal: objectives, limits, and what of two results is better."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf, isfinite
from typing import Final

from onnxslim_tk.errors import RecipeError

OBJECTIVES: Final = ("size", "latency", "macs", "quality")
"""Packed bytes, microseconds by the target's table, multiply-accumulates, and what is lost."""

Point = tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Figures:
    """What is known of one result.

    ``bytes`` of the packed file; ``macs``, ``latency`` (microseconds by the target's table) and
    ``parameters`` of its layers; ``error``, the relative squared error of the outputs on the
    samples for choosing, and ``drop`` of the task's metric there, None without one.
    ``shortfall`` sums what is missing to the budget's limits, each as a share of the limit.
    """

    bytes: int
    macs: float
    latency: float
    parameters: float
    error: float
    drop: float | None = None
    shortfall: float = 0.0


@dataclass(frozen=True, slots=True)
class Goal:
    """What is to be small, and what must hold.

    ``limits`` are the most that may stay, as shares of the original, of size, latency, macs or
    parameters. All values are smaller the better: shares of the original's figures, and for
    quality the metric's drop or, without one, the relative squared error of the outputs.
    """

    objectives: tuple[str, ...] = ("size", "latency")
    limits: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in self.objectives:
            if name not in OBJECTIVES:
                known = ", ".join(OBJECTIVES)
                raise RecipeError(f"search: no objective {name!r}; there are {known}")
        if not self.objectives or len(set(self.objectives)) < len(self.objectives):
            said = ",".join(self.objectives)
            raise RecipeError(
                f"search: the objectives must be one or more, each once, got {said!r}"
            )

    def point(self, figures: Figures, original: Figures) -> Point:
        """The values of the objectives, in their order."""
        return tuple(_value(name, figures, original) for name in self.objectives)

    def violation(self, figures: Figures, original: Figures) -> float:
        """How far a result is from what must hold; 0 where all holds."""
        missing = figures.shortfall
        for name, most in self.limits.items():
            missing += max(0.0, _value(name, figures, original) / most - 1)
        return missing if isfinite(missing) else inf


def _value(name: str, figures: Figures, original: Figures) -> float:
    if name == "quality":
        return figures.error if figures.drop is None else figures.drop
    key = "bytes" if name == "size" else name
    before = float(getattr(original, key))
    return float(getattr(figures, key)) / before if before else 0.0


def dominates(one: Point, other: Point) -> bool:
    """Whether ``one`` is nowhere worse and somewhere better."""
    return one != other and all(a <= b for a, b in zip(one, other, strict=True))


def better(one: tuple[Point, float], other: tuple[Point, float]) -> bool:
    """Whether one result, its values and its violation, beats another (Deb, 2000)."""
    if one[1] > 0 or other[1] > 0:
        return one[1] < other[1]
    return dominates(one[0], other[0])


def front(points: Sequence[Point]) -> list[int]:
    """Which of the points no other one dominates, equal ones once, in order of their values."""
    first = {point: k for k, point in reversed(list(enumerate(points)))}
    kept = [p for p in first if not any(dominates(other, p) for other in first)]
    return [first[p] for p in sorted(kept)]


def hypervolume(points: Iterable[Point], reference: Point) -> float:
    """The volume between the points and ``reference`` (Zitzler and Thiele, 1998), by slicing."""
    inside = [p for p in points if all(a < b for a, b in zip(p, reference, strict=True))]
    if not inside:
        return 0.0
    if len(reference) == 1:
        return reference[0] - min(p[0] for p in inside)
    inside = [inside[k] for k in front(inside)]
    inside.sort(key=lambda p: p[-1])
    edges = [*(p[-1] for p in inside[1:]), reference[-1]]
    return sum(
        (edge - point[-1]) * hypervolume([p[:-1] for p in inside[: k + 1]], reference[:-1])
        for k, (point, edge) in enumerate(zip(inside, edges, strict=True))
    )
