"""The result within the budget: what was asked for, then attempts that give up more and more."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from math import inf
from typing import Final

from onnxslim_tk.errors import RecipeError, SessionError
from onnxslim_tk.pipeline.attempt import Attempt, Workshop
from onnxslim_tk.pipeline.limiting import Limiting
from onnxslim_tk.pipeline.sizing import Sizing
from onnxslim_tk.pipeline.stages import Chooser
from onnxslim_tk.pipeline.stepping import TOLERANCES, Asking, Measured, Stepping, lossless
from onnxslim_tk.plan.budget import Check
from onnxslim_tk.plan.policy import CLEAR_DB

# Decibels that a result has to be nearer for the speed, or the simplicity, that it gives up.
_BETTER_DB: Final = 1.0
_MIXED_DB: Final = 0.3
# A result that is less near than this takes the first step of growth.
_NEAR_DB: Final = 18.0
# What one bit of each weight is worth: so much more than enough is worth looking for a smaller one.
_BIT_DB: Final = 6.0
# Sizes that are tried where the asked one does not hold, and the smallest where it does.
_GROWTH: Final = (1.08, 1.14, 1.22, 1.35, 1.6)
_FAR_GROWTH: Final = (1.3, 1.6)
_SMALLEST: Final = 0.3
_HALVINGS: Final = 4
# What nobody asked for is looked for less closely: each try costs a whole attempt.
_HALVINGS_UNASKED: Final = 2
_SIZE_ROUNDS: Final = 4
_LIMIT_ROUNDS: Final = 4
# How far below a limit in bytes is near enough.
_NEAR: Final = 0.01


@dataclass(frozen=True, slots=True)
class _Judged:
    attempt: Attempt
    checks: tuple[Check, ...]
    quality: float

    @property
    def holds(self) -> bool:
        return all(check.holds for check in self.checks)

    @property
    def is_clear(self) -> bool:
        return all(check.is_clear for check in self.checks)


class WithinBudget:
    """Finds the attempt that keeps the budget and gives up least, on the samples for choosing."""

    def __init__(self, shop: Workshop) -> None:
        self._shop = shop
        self._held: list[_Judged] = []

    def best(self) -> Attempt:
        """The first attempt that keeps the budget.

        Without samples there is nothing to choose by, and the recipe counts as it stands. Where
        settings trade bytes for error, those asked for and a mix that is as small are tried, and
        the nearer one taken; one that is nearer than enough is made smaller. A limit given by the
        user makes it as small as that allows, a limit of size as near as that allows. Where the
        outputs are not clearly near the original's, the few rows whose error is out of proportion
        are given up if that brings them nearer. Where the runtime has no kernel for what a method
        writes, only lossless rows are left.
        """
        try:
            return self._best()
        except SessionError as error:
            self._shop.check_original()
            return replace(self.tidied(1), trouble=str(error))

    def safer(self, than: Attempt) -> Iterator[Attempt]:
        """What to hand over in place of an attempt that the samples for judging refuse.

        The nearest that kept the budget before, where that is clearly nearer, and larger ones that
        are; then what changes no output, and the original.
        """
        steps = than.steps + 1
        refused = next((j.quality for j in self._held if j.attempt.data is than.data), inf)
        for judged in self._nearer():
            if judged.quality >= refused + _BETTER_DB:
                yield replace(judged.attempt, steps=steps)
                refused, steps = judged.quality, steps + 1
        yield self.tidied(steps)
        yield self._shop.untouched(steps)

    def _nearer(self) -> Iterator[_Judged]:
        if self._held:
            yield max(self._held, key=lambda judged: judged.quality)
        if self._held and self._shop.is_graded:
            yield from (self._sized(growth, self._held[0]) for growth in _FAR_GROWTH)

    def tidied(self, steps: int) -> Attempt:
        """The model with lossless rows alone."""
        return replace(self._shop.attempt(lossless, steps), only_tidied=True)

    def _best(self) -> Attempt:
        shop = self._shop
        asked = self._limited() if self._limiting is not None else self._attempt(Asking(), 0)
        graded = shop.is_graded
        limit = shop.budget.most_bytes(len(shop.data))
        if limit is not None:
            if graded:
                return self._of_size(asked, limit)
            self._check_reached(asked, limit)
        if shop.parts is None:
            return asked
        first = self._judged(asked)
        if graded:
            return self._graded(first)
        return self._ungraded(first)

    def _limited(self) -> Attempt:
        """The recipe as asked for within limits of work: by channels alone, or by all methods.

        The nearer one of those that meet the limits; the search then goes on with it.
        """
        assert self._limiting is not None
        alone = self._attempt(Asking(), 0)
        if self._shop.parts is None or not self._limiting.has_choice(self._shop.recipe):
            return alone
        self._limiting.mixed = True
        mixed = self._attempt(Asking(), 0)
        for _ in range(_LIMIT_ROUNDS):
            if not self._limiting.correct(mixed.model):
                break
            mixed = self._attempt(Asking(), 0)
        ranked = [(j.holds, j.quality) for j in map(self._judged, (alone, mixed))]
        self._limiting.mixed = ranked[1] > ranked[0]
        return mixed if self._limiting.mixed else alone

    def _attempt(self, choose: Chooser, steps: int) -> Attempt:
        """An attempt whose limits of work are met whatever ``choose`` picks elsewhere."""
        limiting = self._limiting
        return self._shop.attempt(choose if limiting is None else limiting.beside(choose), steps)

    def _check_reached(self, asked: Attempt, limit: int) -> None:
        """Raise RecipeError for a limit of size that no setting of the recipe could meet."""
        if len(asked.data) > limit:
            raise RecipeError(
                f"budget: the recipe {self._shop.recipe.name!r} makes a file of {len(asked.data)} "
                f"bytes, max size is {limit}, and no method in it trades bytes for error; "
                "take the recipe small, or one with share"
            )

    def _ungraded(self, first: _Judged) -> Attempt:
        if first.holds and first.quality >= CLEAR_DB:
            return first.attempt
        trimmed = self._judged(self._attempt(self._stepping, 0))
        if trimmed.holds and trimmed.quality >= first.quality + _BETTER_DB:
            return trimmed.attempt
        return first.attempt if first.holds else self._stepped(0)

    def _graded(self, first: _Judged) -> Attempt:
        best = first
        if not (first.holds and first.quality >= CLEAR_DB):
            mixed = self._sized(1.0, first)
            nearer = mixed.quality >= first.quality + _MIXED_DB
            best = mixed if (mixed.holds, nearer) > (first.holds, False) else first
        if best.holds:
            if self._shop.has_limits:
                return self._smaller(best)
            enough = self._shop.budget.enough_db
            if enough is not None and best.is_clear and best.quality >= enough + _BIT_DB:
                return self._smaller(best, _HALVINGS_UNASKED, enough)
            if best.is_clear and best.quality >= _NEAR_DB:
                return best.attempt
        for steps, growth in enumerate(_GROWTH, start=1):
            grown = self._sized(growth, first)
            if grown.is_clear and grown.quality >= best.quality + _MIXED_DB:
                return replace(grown.attempt, steps=0 if best.holds else steps)
            if best.is_clear:
                return best.attempt
        if self._held:
            nearest = max(self._held, key=lambda judged: judged.quality)
            return replace(nearest.attempt, steps=0 if best.holds else len(_GROWTH))
        return self._stepped(len(_GROWTH))

    def _stepped(self, before: int) -> Attempt:
        for steps, share in enumerate(TOLERANCES, start=before + 1):
            self._stepping.share = share
            judged = self._judged(self._attempt(self._stepping, steps))
            if judged.holds:
                return judged.attempt
        return self.tidied(before + len(TOLERANCES) + 1)

    def _smaller(self, best: _Judged, halvings: int = _HALVINGS, least_db: float = -inf) -> Attempt:
        """The smallest that holds, halving the way between one that does and one that doesn't.

        Nothing less near than ``least_db`` counts.
        """
        first = best
        low, high = _SMALLEST, 1.0
        for _ in range(halvings):
            factor = (low + high) / 2
            tried = self._sized(factor, first)
            is_near = tried.is_clear and tried.quality >= least_db
            if is_near and len(tried.attempt.data) < len(best.attempt.data):
                best, high = tried, factor
            else:
                low = factor
        return best.attempt

    def _of_size(self, asked: Attempt, limit: int) -> Attempt:
        """The nearest attempt of at most ``limit`` bytes; the smallest where none is so small."""
        tried = self._towards(limit, asked)
        if all(len(attempt.data) > limit for attempt in tried):
            self._sizing.last_resorts = True
            tried += self._towards(limit, asked)
        fitting = [attempt for attempt in tried if len(attempt.data) <= limit]
        if not fitting:
            return min(tried, key=lambda attempt: len(attempt.data))
        if self._shop.parts is None:
            return max(fitting, key=lambda attempt: len(attempt.data))
        return max(map(self._judged, fitting), key=lambda j: (j.holds, j.quality)).attempt

    def _towards(self, limit: int, asked: Attempt) -> list[Attempt]:
        """Attempts on the way to ``limit`` bytes."""
        tried = [asked]
        extra = len(asked.data) - limit
        for _ in range(_SIZE_ROUNDS):
            self._sizing.extra = extra
            tried.append(self._attempt(self._sizing, 0))
            over = len(tried[-1].data) - limit
            if -_NEAR * limit <= over <= 0 or tried[-1].data == tried[-2].data:
                break
            # What was foretold of bytes is near the truth, not the truth.
            extra += over if over < 0 else max(over, int(_NEAR * limit / 2))
        return tried

    def _sized(self, growth: float, first: _Judged) -> _Judged:
        """The mix of least error at ``growth`` times the size of ``first``."""
        self._sizing.extra = int((1 - growth) * len(first.attempt.data))
        return self._judged(self._attempt(self._sizing, 0))

    def _judged(self, attempt: Attempt) -> _Judged:
        judged = _Judged(attempt, *self._shop.quality(attempt))
        if judged.holds:
            self._held.append(judged)
        return judged

    @cached_property
    def _measured(self) -> Measured:
        parts = self._shop.parts
        feeds = () if parts is None else parts.calibrate.feeds
        return Measured(feeds)

    @cached_property
    def _limiting(self) -> Limiting | None:
        shares = self._shop.budget.shares()
        shop = self._shop
        return Limiting(self._measured, shop.model, shares, shop.total) if shares else None

    @cached_property
    def _stepping(self) -> Stepping:
        return Stepping(self._measured)

    @cached_property
    def _sizing(self) -> Sizing:
        return Sizing(self._measured)
