"""How much faster the result runs and loads, beside the original on this machine."""

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Final

from onnxslim_tk.errors import CalibrationError
from onnxslim_tk.measure.runtime import Feed, Opened, Session, fit_together

_WARM_UP: Final = 2
_LOADS: Final = 3
_SHORTEST: Final = 0.002
"""Seconds that a timing must last: below, the clock and the call itself would be measured."""
_MOST_RUNS: Final = 1000


@dataclass(frozen=True, slots=True)
class Latency:
    """Time of one run, in milliseconds of one CPU thread, and ratios of result to original.

    The figures are medians of ``repeats`` interleaved timings; a ratio below 1 is a gain.
    """

    ratio: float
    original_ms: float
    result_ms: float
    load_ratio: float
    repeats: int


def measure_latency(
    original: Opened,
    result: Opened,
    feeds: Sequence[Feed],
    repeats: int = 15,
) -> Latency:
    """Time both models on ``feeds`` in turn: original, result, original, result, ...

    Interleaving spreads a machine's moods over both; models too big to be loaded at once are timed
    one after the other. Runs too short to time are timed in a row.
    Raises CalibrationError without feeds or repeats, SessionError when a model doesn't run.
    """
    if not feeds or repeats < 1:
        raise CalibrationError(
            f"latency: at least 1 feed and 1 repeat are needed, got {len(feeds)} and {repeats}"
        )
    # Decoding an image belongs to neither model.
    kept = [feeds[i] for i in range(min(len(feeds), repeats))]
    if fit_together(original, result):
        times = _times((original, result), kept, repeats)
    else:
        times = [_times((model,), kept, repeats)[0] for model in (original, result)]
    before, after = (median(timed) for timed in times)
    return Latency(
        ratio=after / before,
        original_ms=before * 1e3,
        result_ms=after * 1e3,
        load_ratio=_load_ratio(original, result),
        repeats=repeats,
    )


def _times(models: Sequence[Opened], feeds: Sequence[Feed], repeats: int) -> list[list[float]]:
    """Seconds of each model's runs, taken in turn."""
    sessions = [Session(model) for model in models]
    for session in sessions:
        for index in range(_WARM_UP):
            session.run(feeds[index % len(feeds)])
    once = _seconds(partial(_run, sessions[0], feeds[0], 1))
    runs = min(_MOST_RUNS, max(1, round(_SHORTEST / max(once, 1e-9))))
    times: list[list[float]] = [[] for _ in models]
    for index in range(repeats):
        feed = feeds[index % len(feeds)]
        for session, timed in zip(sessions, times, strict=True):
            timed.append(_seconds(partial(_run, session, feed, runs)) / runs)
    return times


def _run(session: Session, feed: Feed, runs: int) -> None:
    for _ in range(runs):
        session.run(feed)


def _load_ratio(original: Opened, result: Opened) -> float:
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(_LOADS):
        for model, timed in zip((original, result), times, strict=True):
            timed.append(_seconds(partial(Session, model)))
    return median(times[1]) / median(times[0])


def _seconds(work: Callable[[], object]) -> float:
    # The thread's own time leaves out other programs; on Windows its steps are 16 ms.
    clock = time.perf_counter if sys.platform == "win32" else time.thread_time
    start = clock()
    work()
    return max(clock() - start, 1e-9)
