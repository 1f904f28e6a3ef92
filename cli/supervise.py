"""A command's work, in a worker or here, and what is said when a signal ends it."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import current_thread, main_thread
from types import FrameType
from typing import TypeVar

import typer

from onnxslim_tk.measure.validate import Progress
from onnxslim_tk.pipeline import isolated

from .console import visible
from .options import Isolation

Result = TypeVar("Result")


class Interrupted(KeyboardInterrupt):
    """Signal ``number`` ended a run; ``written`` says whether its file was there already."""

    def __init__(self, number: int, written: bool = False) -> None:
        super().__init__(number)
        self.number, self.written = number, written


def supervise(
    call: Callable[[Progress], Result],
    source: Path,
    isolation: Isolation,
    progress: Progress,
    result: Path | None = None,
) -> Result:
    """What ``call`` returns or raises, in a worker where that is asked for.

    Raises Interrupted for a signal, with the news whether ``result`` was written before.
    """
    limits = isolation.limits()
    before = _identity(result)
    try:
        if isolation.isolate:
            return isolated(call, source.name, progress, limits, _relay)
        return call(progress)
    except KeyboardInterrupt as error:
        number = error.number if isinstance(error, Interrupted) else signal.SIGINT
        raise Interrupted(number, _identity(result) != before) from error


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """The signals that end a program raise Interrupted in the block, so that it is tidied up."""
    names = ("SIGTERM", "SIGHUP") if current_thread() is main_thread() else ()
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    # nohup's choice stays.
    numbers = [number for number in numbers if signal.getsignal(number) == signal.SIG_DFL]
    for number in numbers:
        signal.signal(number, _interrupt)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise Interrupted(number)


def _identity(path: Path | None) -> tuple[int, int] | None:
    """What differs between a file and the one that takes its place."""
    if path is None or not path.exists():
        return None
    found = path.stat()
    return found.st_ino, found.st_mtime_ns


def _relay(words: str) -> None:
    for line in words.splitlines():
        typer.echo(visible(line), err=True)
