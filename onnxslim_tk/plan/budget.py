"""Budgets: how far a result may be from the original, by kind of output and by task metric."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, sqrt
from types import MappingProxyType
from typing import Final

from onnxslim_tk.errors import RecipeError
from onnxslim_tk.measure.fidelity import OutputFidelity
from onnxslim_tk.measure.kinds import OutputKind
from onnxslim_tk.measure.metrics import Drop


@dataclass(frozen=True, slots=True)
class Limits:
    """The least that an output must keep: dB, mean cosine, and shares of equal decisions."""

    sqnr_db: float | None = None
    cosine: float | None = None
    agreement: float | None = None


DEFAULT_LIMITS: Final[Mapping[OutputKind, Limits]] = MappingProxyType(
    {
        "classes": Limits(sqnr_db=6.0, agreement=0.93),
        "sequence": Limits(sqnr_db=6.0, agreement=0.96),
        "map": Limits(sqnr_db=12.0),
        "embedding": Limits(sqnr_db=10.0, cosine=0.95),
        "values": Limits(sqnr_db=20.0),
    }
)


_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?) ?(%|[KMG]?B|)", re.IGNORECASE)
_UNITS: Final = {"": 1, "b": 1, "kb": 1000, "mb": 1000**2, "gb": 1000**3}
_USUAL_DROP: Final = 0.01
_AGREEMENT: Final = "top-1 agreement"
_SQNR: Final = "SQNR dB"
_COSINE: Final = "cosine"
_LEAST: Final = (_COSINE, _AGREEMENT)
_MARGIN_DB: Final = 2.0
# Standard errors from end to end of a 95 % interval.
_DEVIATIONS: Final = 3.92


@dataclass(frozen=True, slots=True)
class Budget:
    """What a result must keep.

    ``max_drop`` (in the metric's own unit, 0.01 by default) takes the place of the usual limits
    on agreement when a task metric is measured; a collapsed or non-finite output never passes.
    ``max_size`` is the largest file, in bytes or as text like ``"2MB"`` or ``"10%"`` of the
    original; whoever sets it takes the loss that comes of it, and the usual limits don't hold.
    ``max_macs``, ``max_latency`` (by the target's table) and ``max_params`` are shares of the
    original's layers, as text like ``"70%"``: channels are pruned until they are met, and the
    usual limits don't hold either. ``enough_db`` is no limit: where settings trade bytes for error,
    a result much nearer than that, by the signal-to-noise ratio of its outputs, gives up bytes.
    """

    max_drop: float | None = None
    min_sqnr_db: float | None = None
    min_agreement: float | None = None
    min_cosine: float | None = None
    max_size: int | str | None = None
    max_macs: str | None = None
    max_latency: str | None = None
    max_params: str | None = None
    enough_db: float | None = None

    def __post_init__(self) -> None:
        if self.max_drop is not None and not (isfinite(self.max_drop) and self.max_drop >= 0):
            raise RecipeError(f"budget: max drop must be 0 or more, got {self.max_drop}")
        for name in ("min_sqnr_db", "enough_db"):
            value = getattr(self, name)
            if value is not None and not isfinite(value):
                said = name.replace("_", " ")
                raise RecipeError(f"budget: {said} must be finite, got {value}")
        for name in ("min_agreement", "min_cosine"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                said = name.replace("_", " ")
                raise RecipeError(f"budget: {said} must be in [0, 1], got {value}")
        self.most_bytes(1)
        self.shares()

    def shares(self) -> dict[str, float]:
        """Shares of the original that may stay, by figure: macs, latency, parameters."""
        given = (
            ("macs", "max macs", self.max_macs),
            ("latency", "max latency", self.max_latency),
            ("parameters", "max params", self.max_params),
        )
        found = {}
        for figure, said, text in given:
            if text is not None:
                number = _SIZE.fullmatch(str(text).strip())
                share = float(number[1]) / 100 if number and number[2] == "%" else 0.0
                if not 0 < share <= 1:
                    raise RecipeError(f"budget: {said} must read like 70%, got {text!r}")
                found[figure] = share
        return found

    @property
    def has_limits(self) -> bool:
        """Whether the user limits the loss, which takes samples to be checked."""
        limits = (self.max_drop, self.min_sqnr_db, self.min_agreement, self.min_cosine)
        return any(limit is not None for limit in limits)

    def most_bytes(self, original: int) -> int | None:
        """The largest file in bytes, for an original of so many; None without a limit."""
        if self.max_size is None:
            return None
        found = _SIZE.fullmatch(str(self.max_size).strip())
        number = float(found[1]) if found else 0.0
        if found is None or number <= 0:
            raise RecipeError(
                f"budget: max size must read like 10%, 300KB, 2MB or 123456, got {self.max_size!r}"
            )
        unit = found[2].lower()
        return int(number * original / 100 if unit == "%" else number * _UNITS[unit])

    def limits(self, kind: OutputKind) -> Limits:
        """The limits for a kind of output, the user's before the defaults."""
        forced = self.max_size is not None or self.shares()
        usual = Limits() if forced else DEFAULT_LIMITS[kind]
        return Limits(
            usual.sqnr_db if self.min_sqnr_db is None else self.min_sqnr_db,
            usual.cosine if self.min_cosine is None else self.min_cosine,
            usual.agreement if self.min_agreement is None else self.min_agreement,
        )


@dataclass(frozen=True, slots=True)
class Check:
    """One comparison of a figure with its limit; a ``note`` says what a reader should know."""

    subject: str
    figure: str
    value: float
    limit: float
    holds: bool
    note: str = ""

    @property
    def is_clear(self) -> bool:
        """Whether it holds with a margin that other samples should leave something of."""
        if self.figure == _SQNR:
            return self.value >= self.limit + _MARGIN_DB
        return self.value >= self.limit if self.figure in _LEAST else self.value <= self.limit


def verdict(
    outputs: Sequence[OutputFidelity], drop: Drop | None, budget: Budget, count: int
) -> tuple[Check, ...]:
    """Every limit of ``budget`` held against the figures of ``count`` samples.

    What is counted in decisions holds within one standard error of its limit, so that few
    samples don't fail by chance. A metric that keeps its limit outright, on samples enough to see
    it, takes the place of agreement with the original; else both have to hold.
    """
    checks: list[Check] = []
    allowed = _USUAL_DROP if budget.max_drop is None else budget.max_drop
    asked = budget.min_agreement is not None
    told_by_metric = drop is not None and drop.drop <= allowed and drop.samples * allowed >= 1
    for output in outputs:
        checks.extend(_health(output))
        limits = budget.limits(output.kind)
        if limits.sqnr_db is not None:
            checks.append(_least(output.name, _SQNR, output.sqnr_db, limits.sqnr_db))
        if limits.cosine is not None:
            checks.append(_least(output.name, _COSINE, output.cosine, limits.cosine))
        decides = output.kind in ("classes", "sequence") and output.top1_agreement is not None
        if limits.agreement is not None and decides and (asked or not told_by_metric):
            checks.append(_agreement(output, limits.agreement, count))
    # A limit of 0 asks for nothing, so no output has to decide.
    if budget.min_agreement and not any(check.figure == _AGREEMENT for check in checks):
        note = "no output decides between classes; --output-kind says which does"
        checks.append(Check("outputs", _AGREEMENT, 0.0, budget.min_agreement, False, note))
    if drop is not None:
        checks.append(_drop(drop, allowed))
    return tuple(checks)


def size_check(size: int, limit: int) -> Check:
    """A file's bytes held against the largest number of them."""
    return Check("file", "bytes", size, limit, size <= limit)


def share_check(figure: str, share: float, limit: float) -> Check:
    """What is left of a figure of the original's layers held against the most that may be."""
    return Check("layers", f"share of {figure}", share, limit, share <= limit)


def _health(output: OutputFidelity) -> list[Check]:
    found = []
    if output.non_finite:
        found.append(Check(output.name, "non-finite values", 1.0, 0.0, False))
    if output.collapsed_slices:
        count = float(len(output.collapsed_slices))
        first = ", ".join(map(str, output.collapsed_slices[:5]))
        note = f"slices {first} of the last axis no longer vary"
        found.append(Check(output.name, "collapsed slices", count, 0.0, False, note))
    return found


def _least(subject: str, figure: str, value: float, limit: float) -> Check:
    return Check(subject, figure, value, limit, value >= limit)


def _agreement(output: OutputFidelity, limit: float, count: int) -> Check:
    value = output.top1_agreement or 0.0
    deviation = sqrt(limit * (1 - limit) / max(count, 1))
    note = f"{count} samples: within {deviation:.3f} of the limit counts as held"
    return Check(output.name, _AGREEMENT, value, limit, value >= limit - deviation, note)


def _drop(drop: Drop, allowed: float) -> Check:
    note = ""
    if drop.high > allowed >= drop.low:
        interval = f"[{drop.low:.4f}, {drop.high:.4f}]"
        note = f"{drop.samples} samples tell the drop only to within {interval}"
    deviation = (drop.high - drop.low) / _DEVIATIONS
    holds = isfinite(deviation) and drop.drop - deviation <= allowed
    return Check("metric", "drop", drop.drop, allowed, holds, note)
