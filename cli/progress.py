"""A progress line for what takes its time."""

from threading import Lock, Timer
from types import TracebackType
from typing import Final, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from .console import err, visible

_PATIENCE: Final = 2.0
"""Seconds that a run may take without showing anything on a terminal."""
_PATIENCE_OF_LOGS: Final = 10.0

_NEWS: Final = " | "
"""What stands between a step's name and news of it, which don't begin another step."""


class Steps:
    """Shows a run's present step on stderr, once the run has taken two seconds.

    Call it as ``Options.progress`` is called. A terminal gets a bar with what is done of the step
    and an estimate of its time left; anything else, after ten seconds, a plain line as a step
    begins. Shows nothing when ``quiet``.
    """

    def __init__(
        self, quiet: bool, console: Console | None = None, patience: float | None = None
    ) -> None:
        console = err() if console is None else console
        self._bar: Progress | None = None
        self._plain = None if quiet or console.is_terminal else console
        self._shown = False
        if console.is_terminal and not quiet:
            self._bar = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                console=console,
                transient=True,
            )
            self._task = self._bar.add_task("start", total=None)
        if patience is None:
            patience = _PATIENCE_OF_LOGS if self._bar is None else _PATIENCE
        # A step may run long without a call: only a timer can show it in time.
        self._timer = Timer(patience, self._show)
        self._timer.daemon = True
        self._lock = Lock()
        self._over = False
        self._step = ""

    def __enter__(self) -> Self:
        if self._bar is not None or self._plain is not None:
            self._timer.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._timer.cancel()
        with self._lock:
            self._over = True
            if self._bar is not None:
                self._bar.stop()

    def __call__(self, step: str, done: int, total: int) -> None:
        """Take note of the present step."""
        if self._bar is None:
            with self._lock:
                if step != self._step:
                    self._step = step
                    self._tell()
            return
        # Of one thing to do there is no share to show.
        share = total if total > 1 else None
        if step != self._step and step.partition(_NEWS)[0] == self._step.partition(_NEWS)[0]:
            self._step = step
            self._bar.update(self._task, description=visible(step), completed=done, total=share)
        elif step != self._step:
            self._step = step
            self._bar.reset(self._task, description=visible(step), total=share, completed=done)
        else:
            self._bar.update(self._task, completed=done, total=share)

    def _show(self) -> None:
        with self._lock:
            if self._over:
                return
            self._shown = True
            if self._bar is not None:
                self._bar.start()
            self._tell()

    def _tell(self) -> None:
        """A line for the present step, where there is no terminal."""
        if self._plain is not None and self._shown and self._step:
            self._plain.print(visible(self._step), markup=False, soft_wrap=True)
