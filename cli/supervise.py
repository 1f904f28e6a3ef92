"""A command's work, in a worker or here, and what is said when a signal ends it."""

import re
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import current_thread, main_thread
from types import FrameType
from typing import Annotated, Final, TypeVar

import typer

from onnxslim_tk.measure.validate import Progress
from onnxslim_tk.pipeline import Limits, isolated

from .console import visible

Result = TypeVar("Result")

_PANEL: Final = "Worker process"
_UNITS: Final = {"kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}


@dataclass(frozen=True, slots=True, kw_only=True)
class Isolation:
    """Where a model is run, and what it may take there."""

    isolate: Annotated[
        bool,
        typer.Option(
            "--isolate/--no-isolate",
            rich_help_panel=_PANEL,
            envvar="ONNXSLIM_ISOLATE",
            help="Run the model in a process of its own, so that a crash or a hang of the "
            "runtime is an error like any other.",
        ),
    ] = True
    time_limit: Annotated[
        float | None,
        typer.Option(
            rich_help_panel=_PANEL,
            min=0,
            metavar="SECONDS",
            help="End that process after so long without a sign of life, 3600 by default; "
            "0 waits for ever.",
        ),
    ] = None
    memory_limit: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=_PANEL,
            metavar="SIZE",
            help="Most memory of that process, as 4GB or 512MiB; by default what the machine has.",
        ),
    ] = None

    def limits(self) -> Limits:
        """What the worker may take; raises typer.BadParameter where there is none to limit."""
        for name, value in (("time", self.time_limit), ("memory", self.memory_limit)):
            if value is not None and not self.isolate:
                raise typer.BadParameter(
                    "needs a process of its own, so not --no-isolate", param_hint=f"--{name}-limit"
                )
        usual = Limits()
        seconds = usual.seconds if self.time_limit is None else self.time_limit or None
        return Limits(seconds, None if self.memory_limit is None else _bytes(self.memory_limit))


class Interrupted(KeyboardInterrupt):
    """Signal ``number`` ended a run; ``left`` says what is there of it."""

    def __init__(self, number: int, left: str = "nothing was written") -> None:
        super().__init__(number)
        self.number, self.left = number, left


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
        if _identity(result) != before:
            raise Interrupted(number, "the result was written before") from error
        raise Interrupted(number) from error


@contextmanager
def going_on(folder: Path) -> Iterator[None]:
    """A signal in the block says that the work of a run folder can go on."""
    try:
        yield
    except KeyboardInterrupt as error:
        number = error.number if isinstance(error, Interrupted) else signal.SIGINT
        done = f"what is done so far is in {folder}, the same command goes on from there"
        raise Interrupted(number, done) from error


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """The signals that end a program raise Interrupted in the block, so that it is tidied up."""
    names = ("SIGINT", "SIGTERM", "SIGHUP") if current_thread() is main_thread() else ()
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    # nohup's choice stays.
    before = {n: h for n in numbers if (h := signal.getsignal(n)) not in (signal.SIG_IGN, None)}
    for number in before:
        signal.signal(number, _interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


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


def _bytes(text: str) -> int:
    matched = re.fullmatch(r"(\d+(?:\.\d+)?) *([kmg]i?b)", text.strip().lower())
    if matched is None:
        raise typer.BadParameter(
            f"must read like 4GB or 512MiB, got {text!r}", param_hint="--memory-limit"
        )
    return int(float(matched[1]) * _UNITS[matched[2]])
