"""Runs apart: a call in a worker process, whose crash, hang or hunger is only an error here."""

import os
import re
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from pathlib import Path
from threading import Thread
from typing import Any, Final, TypeVar

from onnxslim_tk.errors import RecipeError, SessionError
from onnxslim_tk.measure.validate import Progress

Result = TypeVar("Result")

_START: Final = "start"
_WORDS: Final = "words"
_LONGEST: Final = 200
_SECONDS_TO_START: Final = 60.0
_LEAST_MEMORY: Final = 200_000_000
"""Less, and the libraries alone would fail, each in its own way."""
_FOR_US: Final = ("SIGINT", "SIGTERM", "SIGHUP")
"""Signals that are the supervisor's to answer."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a worker may take.

    ``seconds`` without a sign of life, that is, a call of its progress, None for any time;
    ``memory`` in bytes, None for as much as the machine has.
    """

    seconds: float | None = 3600.0
    memory: int | None = None

    def __post_init__(self) -> None:
        if self.seconds is not None and not self.seconds > 0:
            raise RecipeError(f"limits: seconds must be above 0, got {self.seconds}")
        if self.memory is not None and self.memory < _LEAST_MEMORY:
            raise RecipeError(
                f"limits: memory must be at least {_LEAST_MEMORY} bytes, got {self.memory}"
            )
        if self.memory is not None and not sys.platform.startswith("linux"):
            raise RecipeError("limits: this system can't limit a worker's memory, Linux can")


def isolated(
    call: Callable[[Progress], Result],
    name: str,
    progress: Progress,
    limits: Limits | None = None,
    heard: Callable[[str], None] | None = None,
) -> Result:
    """What ``call`` returns or raises, run in a process of its own.

    ``call`` gets a progress to tell its steps to; each goes on to ``progress`` here. ``heard``
    gets what the worker printed, once it is over. Raises SessionError, with ``name`` and the last
    step in it, where the worker crashes, hangs or takes too much memory. No process and no
    temporary file is left, whatever ends the call; a worker whose supervisor dies ends too.
    A signal's exception ends the worker as well, and goes on.
    """
    try:
        worker = _Worker(call, Limits() if limits is None else limits)
    except (OSError, NotImplementedError) as error:
        raise SessionError(f"{name}: no worker process can be started: {error}") from error
    try:
        result: Result = worker.follow(name, progress)
        return result
    finally:
        words = worker.end()
        if heard is not None and words:
            heard(words)


class _Worker:
    """A process for one call, seen from the supervisor."""

    def __init__(self, call: Callable[[Progress], Any], limits: Limits) -> None:
        # An import of the package alone needs none of it.
        from joblib.externals.loky import ProcessPoolExecutor
        from joblib.externals.loky.backend import get_context

        context = get_context("loky")
        self._limits = limits
        self._scratch = tempfile.TemporaryDirectory(prefix="onnxslim-", ignore_cleanup_errors=True)
        self._link, other_end = context.Pipe()
        self._executor = ProcessPoolExecutor(
            max_workers=1,
            context=context,
            initializer=_enter,
            initargs=(other_end, self._scratch.name),
            # Otherwise a crash prints the stack of every thread.
            env={"PYTHONFAULTHANDLER": ""},
        )
        self._done = self._dead = False
        with _signals_kept():
            self._future: Future[Any] = self._executor.submit(_work, call, limits.memory)
        # As long as this end is open too, the worker's death doesn't close the link.
        other_end.close()

    def follow(self, name: str, progress: Progress) -> Any:
        """The call's result; raises what it raises, or SessionError for the worker's death."""
        from joblib.externals.loky.process_executor import TerminatedWorkerError

        step = _START
        try:
            for step, done, total in self._steps():
                progress(step, done, total)
            result = self._future.result()
        except _SilentError as error:
            raise SessionError(
                f"{name}: no sign of life for {self._limits.seconds:g} s in the step {step!r}; "
                "the worker was ended"
            ) from error
        except TerminatedWorkerError as error:
            self._dead = True
            raise SessionError(f"{name}: {self._death(str(error))} in the step {step!r}") from error
        except MemoryError as error:
            most = self._limits.memory
            limit = "the machine has" if most is None else f"{most / 1e9:.3g} GB"
            raise SessionError(
                f"{name}: the step {step!r} needs more memory than {limit}"
            ) from error
        self._done = True
        return result

    def _steps(self) -> Iterator[tuple[str, int, int]]:
        """The worker's steps until it is done or dead; raises _SilentError."""
        seconds = self._limits.seconds
        # To start takes the libraries' imports, which are no matter of the model.
        patience = None if seconds is None else max(seconds, _SECONDS_TO_START)
        # The link ends with the process.
        with suppress(EOFError, OSError):
            while True:
                if not self._link.poll(patience):
                    raise _SilentError
                patience = seconds
                message = self._link.recv()
                if message is None:
                    return
                yield message

    def _death(self, report: str) -> str:
        codes = re.search(r"\{(\w+)\(-?\d+\)", report)
        code = codes.group(1) if codes else "unknown"
        if code == "SIGKILL":
            return "the worker was killed, most likely for want of memory,"
        lines = [line for line in self._words().splitlines() if line.strip()]
        last = f" ({' '.join(lines[-1].split())[:_LONGEST]})" if lines else ""
        ended = "ended by itself" if code == "EXIT" else f"crashed with {code}"
        return f"the worker {ended}{last}"

    def end(self) -> str:
        """End the process, by force if it isn't done, and give what it printed if it lived."""
        self._executor.shutdown(wait=True, kill_workers=not self._done)
        self._link.close()
        words = "" if self._dead else self._words()
        self._scratch.cleanup()
        return words

    def _words(self) -> str:
        try:
            return Path(self._scratch.name, _WORDS).read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return ""


class _SilentError(Exception):
    """The worker gave no sign of life."""


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Signals wait for the end of the block; a process started in it never sees them."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    # Its start, which comes with that of a process, would let them through again.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [getattr(signal, s) for s in _FOR_US])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_channel: list["Connection[Any, Any]"] = []
"""In a worker: its link to the supervisor, which can only come with the start of the process."""


def _enter(link: "Connection[Any, Any]", scratch: str) -> None:
    """Make a worker of this process."""
    # Where the mask isn't inherited, a terminal's Ctrl-C comes here too.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _channel.append(link)
    tempfile.tempdir = os.environ["TMPDIR"] = scratch
    words = os.open(Path(scratch, _WORDS), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    # What a model's runtime or a user's metric prints must not get between our lines.
    os.dup2(words, 1)
    os.dup2(words, 2)
    os.close(words)
    Thread(target=_end_with, args=(link, scratch), daemon=True).start()


def _end_with(link: "Connection[Any, Any]", scratch: str) -> None:
    """End this process as soon as the supervisor's has."""
    with suppress(EOFError, OSError):
        link.recv_bytes()
    shutil.rmtree(scratch, ignore_errors=True)
    os._exit(1)


def _work(call: Callable[[Progress], Result], memory: int | None) -> Result:
    """The call, in the worker."""
    (link,) = _channel
    try:
        with limited(memory):
            return call(lambda step, done, total: link.send((step, done, total)))
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        link.send(None)


@contextmanager
def limited(memory: int | None) -> Iterator[None]:
    """This process allocates at most ``memory`` bytes in the block, None for the machine's."""
    if not sys.platform.startswith("linux"):
        yield
        return
    import resource

    # Not the address space: mapped files and reserved pages take no memory.
    before, most = resource.getrlimit(resource.RLIMIT_DATA)
    wanted = _machine_memory() if memory is None else memory
    allowed = wanted if most == resource.RLIM_INFINITY else min(wanted, most)
    resource.setrlimit(resource.RLIMIT_DATA, (allowed, most))
    try:
        yield
    finally:
        # What went wrong must find its way back.
        resource.setrlimit(resource.RLIMIT_DATA, (before, most))


def _machine_memory() -> int:
    """Bytes that this process may allocate on the whole when it uses all the machine has."""
    page = os.sysconf("SC_PAGE_SIZE")
    memory = page * os.sysconf("SC_PHYS_PAGES")
    with suppress(OSError, ValueError):
        # A container's share; "max" stands for all.
        memory = min(memory, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    # Libraries set buffers aside for every processor, of which most are never touched.
    return memory + page * int(Path("/proc/self/statm").read_text().split()[5])
