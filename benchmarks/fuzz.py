"""Damage many models at random and watch what every verb does with them.

    python -m benchmarks.fuzz build/fuzz.jsonl --count 10000 --jobs 2 [FILE ...]

Every case follows from its number and ``--seed``; those that the log holds already aren't tried
again. Files given are damaged beside the small models of ``benchmarks/seeds.py``. A worker that
dies, hangs or fills its memory is counted and replaced.
"""

import argparse
import json
import os
import random
import resource
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import asdict, dataclass
from importlib import import_module
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Final

from benchmarks.mutations import mutate
from benchmarks.seeds import seeds

_SECONDS: Final = 20.0
_BYTES: Final = 4 << 30
_FILE_SHARE: Final = 0.03
_LAST_WORDS: Final = 5.0
_SMALL: Final = 1 << 18
_BAD: Final = ("traceback", "written")


@dataclass(slots=True)
class Outcome:
    """What came of one damaged file.

    ``outcome`` is done, refused, memory, traceback, written (a file in spite of a refusal), time
    or native crash; ``verb`` is where it ended; ``megabytes`` the peak beyond what was there.
    """

    case: int
    seed: str
    outcome: str
    verb: str = ""
    message: str = ""
    seconds: float = 0.0
    megabytes: float = 0.0
    stricter: bool = False


def main() -> int:
    """Run the cases that the log doesn't hold yet, then print the table."""
    given = argparse.ArgumentParser(prog="fuzz", description=__doc__)
    given.add_argument("log", type=Path)
    given.add_argument("files", type=Path, nargs="*")
    given.add_argument("--count", type=int, default=1000)
    given.add_argument("--jobs", type=int, default=1)
    given.add_argument("--seed", type=int, default=0)
    given.add_argument("--case", type=int, help="try this one here, with its traceback")
    options = given.parse_args()
    if options.case is not None:
        print(_alone(options.case, options.seed, options.files))
        return 0
    rows = _stored(options.log)
    known = {row.case for row in rows}
    missing = [case for case in range(options.count) if case not in known]
    with options.log.open("a", encoding="utf-8") as log:
        for row in _run(missing, options.seed, options.files, options.jobs):
            rows.append(row)
            log.write(json.dumps(asdict(row)) + "\n")
            log.flush()
    print(_table(rows), end="")
    return int(any(row.outcome in _BAD for row in rows))


def _stored(log: Path) -> list[Outcome]:
    if not log.exists():
        return []
    return [Outcome(**json.loads(line)) for line in log.read_text(encoding="utf-8").splitlines()]


def _run(cases: list[int], seed: int, files: list[Path], jobs: int) -> Any:
    """Yield an outcome for every case, in whatever order workers finish."""
    waiting = list(reversed(cases))
    workers = [_Worker(seed, files) for _ in range(min(jobs, len(cases)))]
    try:
        for worker in workers:
            worker.give(waiting.pop())
        while busy := [worker for worker in workers if worker.case is not None]:
            wait([worker.pipe for worker in busy], timeout=0.5)
            for worker in busy:
                outcome = worker.outcome()
                if outcome is None:
                    continue
                yield outcome
                if waiting:
                    worker.give(waiting.pop())
    finally:
        for worker in workers:
            worker.stop()


class _Worker:
    """A process that tries one case after the other, and its watchdog."""

    def __init__(self, seed: int, files: list[Path]) -> None:
        self._seed, self._files = seed, files
        self._start()

    def _start(self) -> None:
        context = get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, self._seed, self._files))
        self._process.start()
        theirs.close()
        self.pipe.recv()
        self.case: int | None = None

    def give(self, case: int) -> None:
        """Hand a case over."""
        self.case, self._since, self._at = case, time.monotonic(), ("", "")
        self.pipe.send(case)

    def outcome(self) -> Outcome | None:
        """What came of the case, or None while it runs; a dead or late worker is replaced."""
        assert self.case is not None
        seconds = time.monotonic() - self._since
        try:
            while self.pipe.poll():
                message = self.pipe.recv()
                if isinstance(message, Outcome):
                    self.case = None
                    return message
                self._at = message
        except (EOFError, OSError):
            return self._lost("native crash", seconds)
        return self._lost("time", seconds) if seconds > _SECONDS else None

    def _lost(self, what: str, seconds: float) -> Outcome:
        case, (seed, verb) = self.case, self._at
        if what == "native crash":
            # Its end of the pipe closes a moment before it is gone.
            self._process.join(_LAST_WORDS)
        self.stop()
        code = f"exit code {self._process.exitcode}"
        self._start()
        assert case is not None
        return Outcome(case, seed, what, verb, code, seconds)

    def stop(self) -> None:
        """End the process, whatever it is doing."""
        self._process.kill()
        self._process.join()
        self.pipe.close()


def _serve(pipe: Connection, seed: int, files: list[Path]) -> None:
    """The worker's side: cases in, outcomes out, and before every verb where it stands."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # What a runtime writes on its way out belongs to nobody's terminal.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    originals = _originals(files)
    resource.setrlimit(resource.RLIMIT_AS, (_BYTES, _BYTES))
    pipe.send("ready")
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        while True:
            case = pipe.recv()
            pipe.send(_try(case, seed, originals, Path(folder), lambda *at: pipe.send(at)))


def _originals(files: list[Path]) -> dict[str, bytes]:
    from onnxslim_tk.demo import MODEL

    small = seeds() | {"/demo": MODEL.read_bytes()}
    return small | {f"/{path.parent.name}/{path.name}": path.read_bytes() for path in files}


def _alone(case: int, seed: int, files: list[Path]) -> Outcome:
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        return _try(case, seed, _originals(files), Path(folder), lambda *_: None)


def damaged(case: int, seed: int, originals: dict[str, bytes]) -> tuple[str, bytes]:
    """The file of a case, and the name of what it was made of; the same at every call."""
    rng = random.Random(f"{seed}/{case}")
    big = sorted(name for name in originals if name.startswith("/"))
    small = sorted(originals.keys() - set(big))
    name = rng.choice(big if big and rng.random() < _FILE_SHARE else small)
    return name, mutate(originals[name], rng)


def _try(case: int, seed: int, originals: dict[str, bytes], folder: Path, at: Any) -> Outcome:
    from onnxslim_tk.errors import OnnxSlimError

    name, data = damaged(case, seed, originals)
    source, result = folder / "in.onnx", folder / "out.onnx"
    source.write_bytes(data)
    outcome = Outcome(case, name, "done")
    before, started = _reset_peak(), time.monotonic()
    for verb, action in _verbs(source, result, sampled=case % 2 == 0 and len(data) < _SMALL):
        at(name, verb)
        outcome.verb = verb
        result.unlink(missing_ok=True)
        try:
            action()
        except OnnxSlimError as error:
            outcome.outcome, outcome.message = "refused", str(error)
            if not outcome.message or "\n" in outcome.message:
                outcome.outcome = "traceback"
        except MemoryError as error:
            outcome.outcome, outcome.message = "memory", str(error)
        # Whatever else gets out is what this looks for.
        except Exception:
            outcome.outcome, outcome.message = "traceback", traceback.format_exc()
        if outcome.outcome != "done":
            if result.exists():
                outcome.outcome = "written"
            break
    outcome.seconds = time.monotonic() - started
    if (outcome.outcome, outcome.verb) == ("refused", "load"):
        at(name, "runtime")
        outcome.stricter = _loads(source)
    outcome.megabytes = max(0.0, _peak() - before)
    return outcome


def _verbs(source: Path, result: Path, sampled: bool) -> Any:
    """What a user does with a file, in order, each with its name."""
    from onnxslim_tk import pipeline
    from onnxslim_tk.measure.samples import Samples, random_feed

    yield "load", lambda: pipeline.load(source)
    yield "inspect", lambda: _inspect(source)

    def optimize() -> None:
        samples = None
        inputs = _inputs(source) if sampled else ()
        if inputs:
            samples = Samples([random_feed(inputs, seed, free=4) for seed in range(4)])
        pipeline.optimize(source, result, "balanced", pipeline.Options(calibration=samples))

    yield "optimize", optimize
    yield "pack", lambda: pipeline.pack(source, result)


def _inspect(source: Path) -> None:
    """The command itself, for what it prints must not move a terminal."""
    from typer.testing import CliRunner

    from onnxslim_tk.errors import ModelError

    # The same files lie in a folder of another name, for whoever reads the types.
    app = import_module("onnxslim_tk.cli").app
    result = CliRunner().invoke(app, ["inspect", "--no-isolate", str(source)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    if any(not c.isprintable() and c != "\n" for c in result.output):
        raise RuntimeError("a control character in what inspect prints")
    if result.exit_code:
        raise ModelError(result.stderr.strip())


def _inputs(source: Path) -> Any:
    """The inputs, none where the runtime refuses the file: what it lacks may be all that is odd."""
    from onnxslim_tk.errors import SessionError
    from onnxslim_tk.measure.runtime import Session

    try:
        return Session(source).inputs
    except SessionError:
        return ()


def _loads(source: Path) -> bool:
    from onnxslim_tk.errors import SessionError
    from onnxslim_tk.measure.runtime import Session

    try:
        Session(source)
    except SessionError:
        return False
    return True


def _reset_peak() -> float:
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return _peak()


def _peak() -> float:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return 0.0


def _table(rows: list[Outcome]) -> str:
    """The figures as Markdown, and one line for each kind of traceback."""
    counts = Counter(row.outcome for row in rows)
    lines = ["| figure | value |", "|---|---|", f"| files tried | {len(rows)} |"]
    kinds = ("done", "refused", "native crash", "time", "memory", *_BAD)
    lines += [f"| {kind} | {counts[kind]} |" for kind in kinds]
    sentences = {row.message for row in rows if row.outcome == "refused"}
    lines.append(f"| distinct sentences | {len(sentences)} |")
    stricter = sum(row.stricter for row in rows)
    lines.append(f"| refused, though the runtime loads it | {stricter} |")
    if rows:
        slow, big = (max(rows, key=lambda row: getattr(row, n)) for n in ("seconds", "megabytes"))
        lines.append(f"| worst time, s | {slow.seconds:.1f} (case {slow.case}, {slow.seed}) |")
        lines.append(f"| worst memory, MB | {big.megabytes:.0f} (case {big.case}, {big.seed}) |")
    found: dict[tuple[str, ...], list[int]] = {}
    for row in rows:
        if row.outcome in (*_BAD, "time", "native crash", "memory"):
            place = [part.strip() for part in row.message.splitlines() if "onnxslim_tk/" in part]
            last = row.message.splitlines()[-1:] or [""]
            found.setdefault((row.outcome, row.verb, *place[-1:], *last), []).append(row.case)
    for kind, cases in sorted(found.items(), key=lambda item: -len(item[1])):
        lines.append(f"{len(cases)} x {' | '.join(kind)} (case {cases[0]})")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
