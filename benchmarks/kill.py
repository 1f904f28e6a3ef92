"""Kills real runs at random moments and counts the files that are lost.

Run it from anywhere, in an environment with the package, on Linux::

    python benchmarks/kill.py --points 36

Each run compresses the built-in model onto a file that is there already. At a moment drawn at
random the command or its worker gets a signal; then the old file, whole, or the new one, whole,
must lie there, and the source as it was. Ctrl-C ends it with the table of the points so far.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from threading import Event
from typing import Final

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.tables import markdown
from onnxslim_tk.demo import CALIBRATION, MODEL
from onnxslim_tk.errors import OnnxSlimError
from onnxslim_tk.measure.runtime import Session

OLD: Final = b"the user's file, which must not be lost" * 1000
SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)
PATIENCE: Final = 10.0


@dataclass(frozen=True, slots=True)
class Point:
    """What one signal did: which file lay there, and what was left over."""

    to: str
    signal: str
    state: str
    exit_code: int
    source_whole: bool
    beside: int
    scratch: int
    processes: int
    traceback: bool


def main() -> int:
    """Run all points and print the table; 1 where a file was lost."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--points", type=int, default=36, help="per signal and process (36)")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    draw = random.Random(given.seed)
    stopped = Event()
    # A shell may have taken Ctrl-C away from what it puts aside; runs get it back by this, too.
    signal.signal(signal.SIGINT, lambda *_: stopped.set())
    with tempfile.TemporaryDirectory(prefix="kill-") as place:
        expected, seconds = undisturbed(Path(place))
        kinds = [
            kind for kind in product(("command", "worker"), SIGNALS) for _ in range(given.points)
        ]
        draw.shuffle(kinds)
        points = []
        for k, (to, number) in enumerate(kinds):
            if stopped.is_set():
                break
            # Every second point lies where the result is judged and written.
            first = 0.0 if k % 2 else 0.7
            moment = draw.uniform(first, 1.05) * seconds
            points.append(one_point(Path(place) / str(k), to, number, moment, expected))
    print(f"{len(points)} points, seed {given.seed}, an undisturbed run takes {seconds:.2f} s\n")
    print(table(points))
    return int(any(lost(point) for point in points))


def undisturbed(place: Path) -> tuple[bytes, float]:
    """What a run writes, and the seconds that it takes: the second of two runs."""
    for k in range(2):
        folder = prepared(place / f"whole{k}")
        started = time.monotonic()
        process = run(folder)
        process.communicate()
        seconds = time.monotonic() - started
    return (folder / "out.onnx").read_bytes(), seconds


def prepared(folder: Path) -> Path:
    """A folder with a source, a target of known content, and a place for temporary files."""
    (folder / "tmp").mkdir(parents=True)
    shutil.copy(MODEL, folder / "in.onnx")
    (folder / "out.onnx").write_bytes(OLD)
    return folder


def run(folder: Path) -> subprocess.Popen[bytes]:
    """The command, started as from a terminal of its own."""
    code = "from onnxslim_tk_start import main; main()"
    options = ["--calibration", str(CALIBRATION), "--metric", "accuracy", "--quiet"]
    return subprocess.Popen(
        [sys.executable, "-c", code, "optimize", "in.onnx", "out.onnx", *options],
        cwd=folder,
        # Nothing is known from earlier runs, and what is kept is written anew in each.
        env={**os.environ, "TMPDIR": str(folder / "tmp"), "ONNXSLIM_CACHE": str(folder / "cache")},
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def one_point(folder: Path, to: str, number: signal.Signals, moment: float, new: bytes) -> Point:
    """Start a run, send the signal after ``moment`` seconds, and look at what is there."""
    process = run(prepared(folder))
    time.sleep(moment)
    victim: int | None = process.pid
    while to == "worker" and (victim := worker_of(process.pid)) is None and process.poll() is None:
        time.sleep(0.01)
    if victim is not None and process.poll() is None:
        # It may end by itself just before.
        with suppress(ProcessLookupError):
            os.kill(victim, number)
    _, errors = process.communicate()
    left = remaining(process.pid)
    found = Point(
        to,
        number.name,
        state(folder / "out.onnx", new),
        process.returncode,
        (folder / "in.onnx").read_bytes() == MODEL.read_bytes(),
        len(set(os.listdir(folder)) - {"in.onnx", "out.onnx", "tmp", "cache"}),
        len(list((folder / "tmp").glob("onnxslim-*"))),
        left,
        b"Traceback" in errors,
    )
    shutil.rmtree(folder)
    return found


def state(path: Path, new: bytes) -> str:
    """Which file lies there: ``old``, ``new``, or ``lost``."""
    data = path.read_bytes() if path.exists() else b""
    if data == OLD:
        return "old"
    try:
        Session(path)
    except OnnxSlimError:
        return "lost"
    return "new" if data == new else "lost"


def remaining(group: int) -> int:
    """Processes of the run that are still there when it is over, given time to end."""
    until = time.monotonic() + PATIENCE
    while alive := [pid for pid, _, leader in processes() if leader == group]:
        if time.monotonic() > until:
            return len(alive)
        time.sleep(0.02)
    return 0


def worker_of(command: int) -> int | None:
    """The worker of a command, None before it is there."""
    for pid, parent, _ in processes():
        if parent == command:
            try:
                line = Path(f"/proc/{pid}/cmdline").read_bytes()
            except OSError:
                continue
            if b"popen_loky" in line:
                return pid
    return None


def processes() -> Iterator[tuple[int, int, int]]:
    """Number, parent and process group of everything that runs."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            # One that only waits to be counted is over.
            if fields[0] not in "ZX":
                yield int(entry.name), int(fields[1]), int(fields[2])


def lost(point: Point) -> bool:
    """Whether a file of the user's is not as it must be."""
    return point.state == "lost" or not point.source_whole


def table(points: Sequence[Point]) -> str:
    """Points by signal and process."""
    header = ["signal to", "points", "old file", "new file", "lost", "source changed"]
    header += ["left beside OUT", "left in TMPDIR", "processes left", "tracebacks", "exit codes"]
    rows = []
    for to, number in [*product(("command", "worker"), SIGNALS), ("all", None)]:
        mine = [p for p in points if number is None or (p.to, p.signal) == (to, number.name)]
        figures = [
            len(mine),
            sum(p.state == "old" for p in mine),
            sum(p.state == "new" for p in mine),
            sum(p.state == "lost" for p in mine),
            sum(not p.source_whole for p in mine),
            sum(p.beside for p in mine),
            sum(p.scratch for p in mine),
            sum(p.processes for p in mine),
            sum(p.traceback for p in mine),
        ]
        codes = ", ".join(map(str, sorted({p.exit_code for p in mine})))
        name = to if number is None else f"{number.name} {to}"
        rows.append([name, *map(str, figures), codes])
    return markdown(header, rows)


if __name__ == "__main__":
    sys.exit(main())
