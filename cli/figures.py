"""Numbers and names as tables show them."""

from collections.abc import Sequence
from math import isinf, isnan

from .console import shown

NOTHING = "-"


def count(value: float | None) -> str:
    """A whole number in groups of three."""
    return NOTHING if value is None else f"{round(value):,}"


def ratio(value: float | None) -> str:
    """A ratio with three digits that say something."""
    return NOTHING if value is None else real(value, 3)


def share(value: float | None) -> str:
    """A share of one with four decimals."""
    return NOTHING if value is None or isnan(value) else f"{value:.4f}"


def decibels(value: float) -> str:
    """A ratio in dB; identical outputs are at 200."""
    if isnan(value) or isinf(value):
        return real(value, 3)
    return "identical" if value >= 200 else f"{value:.1f}"


def real(value: float, digits: int = 4) -> str:
    """Any number, short."""
    if isnan(value):
        return "undefined"
    if isinf(value):
        return "infinite" if value > 0 else "-infinite"
    return f"{value:.{digits}g}"


def size(count_of_bytes: float) -> str:
    """Bytes in the unit that keeps the number short (1 kB is 1000 bytes)."""
    for unit, step in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(count_of_bytes) >= step:
            return f"{count_of_bytes / step:.3g} {unit}"
    return f"{count_of_bytes:.0f} B"


def dims(shape: Sequence[int | str | None] | None) -> str:
    """A shape as people write it."""
    if shape is None:
        return "unknown"
    return shown("(" + ", ".join("?" if d is None else str(d) for d in shape) + ")")


def some(names: Sequence[str], total: int) -> str:
    """The first of ``total`` names, and how many more there are."""
    more = f" and {total - len(names)} more" if total > len(names) else ""
    return ", ".join(map(shown, names)) + more
