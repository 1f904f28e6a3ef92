"""Many models: each optimized on its own, one manifest of all, and a run that can go on."""

import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Final, Literal, get_args

from onnxslim_tk.errors import ModelError, OnnxSlimError
from onnxslim_tk.measure.validate import Progress, silent
from onnxslim_tk.pipeline.cache import key_of
from onnxslim_tk.pipeline.files import read_model
from onnxslim_tk.pipeline.workers import Lost, Place, Workers
from onnxslim_tk.report.as_json import write_report
from onnxslim_tk.report.outcome import Report
from onnxslim_tk.version import VERSION
from onnxslim_tk.writing import replacing

MANIFEST: Final = "manifest.json"
_FORMAT: Final = 1

Ending = Literal["done", "budget", "failed"]


@dataclass(frozen=True, slots=True)
class Job:
    """One model: where it lies, where its result goes, and the call that makes it.

    ``settings`` tells by its ``repr`` all that decides on the result beside the model.
    """

    name: str
    source: Path
    result: Path
    call: Callable[[Progress], Report]
    settings: str


@dataclass(frozen=True, slots=True)
class Row:
    """What became of a model: a line of the manifest.

    ``ending`` is ``budget`` where the result is there and breaks the budget, ``failed`` where there
    is none, for the reason in ``error``.
    """

    name: str
    ending: Ending
    key: str
    error: str = ""
    result: str = ""
    report: str = ""
    original_bytes: int = 0
    result_bytes: int = 0
    latency_ratio: float | None = None
    drop: float | None = None
    result_sha256: str = ""
    seconds: float = 0.0


def optimize_many(
    jobs: Sequence[Job],
    folder: Path,
    place: Place,
    watch: Callable[[Row, int, int], None] | None = None,
) -> list[Row]:
    """Carry all jobs out in the workers of ``place``; what one comes to concerns no other.

    The manifest in ``folder`` is written anew after each model. Models that an earlier run did with
    the same settings are not done again, those that failed are. ``watch`` hears of each row, how
    many there are, and of how many.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ModelError(f"model: {folder} cannot be a folder: {error.strerror}") from error
    before = _read(folder / MANIFEST)
    rows: dict[str, Row] = {}

    def note(row: Row) -> None:
        rows[row.name] = row
        # What is not done yet in this run keeps its line of the earlier one.
        kept = [rows.get(job.name) or before.get(job.name) for job in jobs]
        _write([row for row in kept if row is not None], folder / MANIFEST)
        if watch is not None:
            watch(row, len(rows), len(jobs))

    waiting: list[Job] = []
    for job in jobs:
        old = before.get(job.name)
        if old is not None and _is_done(job, old):
            note(old)
        else:
            waiting.append(job)
    # Whoever takes longest must not come last, or the others would wait for it (Graham, 1969).
    waiting.sort(key=lambda job: -_size(job.source))
    with Workers(place) as workers:
        for k, found in workers.each(_done, [(job, str(folder)) for job in waiting]):
            if isinstance(found, Lost):
                found = Row(waiting[k].name, "failed", "", found.why)
            note(found)
    return [rows[job.name] for job in jobs]


def names_of(sources: Sequence[Path]) -> list[str]:
    """A name for each model in one folder: its path below the folder that all have in common."""
    whole = [Path(os.path.abspath(source)) for source in sources]
    top = os.path.commonpath([path.parent for path in whole])
    return [path.relative_to(top).as_posix() for path in whole]


def _done(job: Job, folder: str) -> Row:
    """In a worker: carry one job out."""
    try:
        key = _key(job)
        job.result.parent.mkdir(parents=True, exist_ok=True)
        report = job.call(silent)
        beside = job.result.with_suffix(".report.json")
        write_report(report, beside)
    except OnnxSlimError as error:
        return Row(job.name, "failed", "", str(error))
    except Exception as error:
        # A bug that one model brings to light must not cost the others theirs.
        said = " ".join(str(error).split())[:300]
        return Row(job.name, "failed", "", f"{type(error).__name__}: {said}")
    return replace(
        _row(job, report, key),
        result=os.path.relpath(job.result, folder),
        report=os.path.relpath(beside, folder),
    )


def _row(job: Job, report: Report, key: str) -> Row:
    found = report.validation
    faithful = found.faithfulness
    drop = None if faithful is None or faithful.drop is None else faithful.drop.drop
    return Row(
        job.name,
        "done" if report.holds else "budget",
        key,
        original_bytes=found.original.file_bytes,
        result_bytes=found.result.file_bytes,
        latency_ratio=None if found.latency is None else found.latency.ratio,
        drop=drop,
        result_sha256=report.result_sha256,
        seconds=report.seconds,
    )


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _key(job: Job) -> str:
    return key_of(VERSION, read_model(job.source).sha256, job.settings)


def _is_done(job: Job, row: Row) -> bool:
    """Whether a model's result is there already, made of the same with the same settings."""
    if row.ending == "failed" or not job.result.is_file():
        return False
    try:
        return row.key == _key(job) and read_model(job.result).sha256 == row.result_sha256
    except ModelError:
        return False


def _read(path: Path) -> dict[str, Row]:
    """The rows of an earlier run; none where there is no sound manifest."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["format"] != _FORMAT:
            return {}
        known = {field.name for field in fields(Row)}
        rows = [Row(**{n: v for n, v in row.items() if n in known}) for row in data["models"]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
    return {row.name: row for row in rows}


def _write(rows: Sequence[Row], path: Path) -> None:
    endings = Counter(row.ending for row in rows)
    data: dict[str, Any] = {
        "format": _FORMAT,
        "version": VERSION,
        **{ending: endings[ending] for ending in get_args(Ending)},
        "models": [asdict(row) for row in rows],
    }
    try:
        with replacing(path) as file:
            file.write((json.dumps(data, indent=1) + "\n").encode())
    except OSError as error:
        raise ModelError(f"model: {path} cannot be written: {error.strerror}") from error
