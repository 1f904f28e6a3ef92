"""Stepping back: milder choices, worst rows first, until the budget holds."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import numpy as np

from onnxslim_tk.graph.model import Model
from onnxslim_tk.measure.probe import Probe
from onnxslim_tk.measure.runtime import Feed
from onnxslim_tk.pipeline.cache import Arrays, as_text, from_text
from onnxslim_tk.pipeline.cache import key_of as content_key
from onnxslim_tk.pipeline.kept import rows_of
from onnxslim_tk.pipeline.stages import Begun
from onnxslim_tk.plan.knapsack import alternatives
from onnxslim_tk.plan.policy import Key, asked_for, key_of, rescaled, trimmed, within
from onnxslim_tk.plan.proposal import Pass, Proposal
from onnxslim_tk.plan.recipe import Stage

TOLERANCES: Final = (0.5, 0.25, 0.1, 0.03, 0.01, 0.0)
"""Shares of the summed error of all rows asked for that a step back still allows."""
# Small inputs bring few positions each, so more of them are needed to tell an error.
_FEWEST_SAMPLES: Final = 6
_MOST_SAMPLES: Final = 12
_ENOUGH_VALUES: Final = 600_000
_MUCH: Final = 0.03


class Asking:
    """Takes every setting as it was asked for."""

    def __call__(
        self, stage: Stage, proposals: Sequence[Proposal], model: Model, begun: Begun
    ) -> list[Proposal]:
        """The asked-for row of every target."""
        return asked_for(proposals)


class Measured:
    """Errors of rows, each probed alone, once; kept by method, targets and setting."""

    def __init__(self, feeds: Sequence[Feed]) -> None:
        size = sum(np.asarray(value).size for value in feeds[0].values()) if feeds else 0
        count = min(max(_ENOUGH_VALUES // max(size, 1), _FEWEST_SAMPLES), _MOST_SAMPLES)
        self._feeds = feeds[:count]
        self._errors: dict[Key, float] = {}

    def __getitem__(self, row: Proposal) -> float:
        """The measured error of a row, 0 where there is none."""
        return self._errors.get(key_of(row), 0.0)

    def rows(
        self,
        stage: Stage,
        proposals: Sequence[Proposal],
        wanted: Sequence[Proposal],
        model: Model,
        begun: Begun,
    ) -> list[Proposal]:
        """``proposals`` with the errors of ``wanted`` measured, and the others' scaled to them."""
        # What a method has measured itself counts as it is.
        wanted = [row for row in wanted if not row.measured]
        missing = [row for row in wanted if key_of(row) not in self._errors]
        if missing and self._feeds:
            kept = self._kept(begun)
            for row in missing:
                if (known := kept.get(_named(row))) is not None:
                    self._errors[key_of(row)] = known
            missing = [row for row in missing if key_of(row) not in self._errors]
        if missing and self._feeds:
            self._probe(stage, missing, model, begun)
            if begun.cache is not None:
                found = {_named(row): self._errors.get(key_of(row)) for row in missing}
                both = kept | {name: error for name, error in found.items() if error is not None}
                begun.cache.save(_errors_key(begun), {"errors": as_text(both)})
        return rescaled(proposals, self._errors)

    def _kept(self, begun: Begun) -> dict[str, float]:
        """Errors that the cache holds of this stage's rows."""
        found = None if begun.cache is None else begun.cache.load(_errors_key(begun), _errors_of)
        return {} if found is None else found

    def _probe(self, stage: Stage, rows: Sequence[Proposal], model: Model, begun: Begun) -> None:
        # What a row does alone needs no tuning of its surroundings.
        context = replace(begun.context, feeds=())
        probe = Probe(model, self._feeds)
        if not probe.measures:
            return
        methods: dict[str, Pass] = {method.name: method for method in stage.passes}

        def error(row: Proposal) -> float:
            return probe.error(lambda twin: methods[row.method].apply(twin, [row], context))

        for row, found in zip(rows, context.each("measure each row", error, rows), strict=True):
            self._errors[key_of(row)] = min(found, 1e9)


def _errors_key(begun: Begun) -> str:
    return content_key("errors", begun.key)


def _errors_of(arrays: Arrays) -> dict[str, float]:
    return {str(name): float(error) for name, error in from_text(arrays["errors"]).items()}


def _named(row: Proposal) -> str:
    return rows_of([row])


class Stepping:
    """Takes rows by their measured errors.

    With a ``share``, those whose errors add up to that part of the errors of all rows asked for;
    without, all but the few whose error is out of proportion.
    """

    def __init__(self, measured: Measured) -> None:
        self.share: float | None = None
        self._measured = measured

    def __call__(
        self, stage: Stage, proposals: Sequence[Proposal], model: Model, begun: Begun
    ) -> list[Proposal]:
        """Rows within the present share, chosen by the knapsack, or the trimmed ones."""
        groups = [group for group in alternatives(proposals) if group[0].error > 0]
        if self.share is None:
            groups = [group for group in groups if len(group) > 1 and group[0].cost_saved > 0]
        if not groups:
            return asked_for(proposals)
        first = [group[0] for group in groups]
        self._measured.rows(stage, proposals, first, model, begun)
        known = self._measured.rows(stage, proposals, self._milder(groups), model, begun)
        if self.share is None:
            return trimmed(known)
        total = sum(group[0].error for group in alternatives(known) if group[0].error < 1e9)
        return within(known, self.share * total)

    def _milder(self, groups: Sequence[Sequence[Proposal]]) -> list[Proposal]:
        """Second settings, where the first makes much of the error and may make all of it alone."""
        errors = [self._measured[group[0]] for group in groups]
        total = sum(error for error in errors if error < 1e9)
        return [
            group[1]
            for group, error in zip(groups, errors, strict=True)
            if len(group) > 1 and error >= _MUCH * total
        ]


def lossless(
    stage: Stage, proposals: Sequence[Proposal], model: Model, begun: Begun
) -> list[Proposal]:
    """Only rows that change no output."""
    return asked_for([row for row in proposals if row.error == 0])
