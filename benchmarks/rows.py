"""Rows of results: one model under one recipe, kept as a JSON file each."""

import hashlib
import json
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import onnxslim_tk
from onnxslim_tk.measure.runtime import runtime_version
from onnxslim_tk.version import VERSION

Status = Literal["done", "failed", "not evaluated"]


@dataclass(frozen=True, slots=True)
class Row:
    """What was found; pairs are original and result.

    ``key`` says what was asked for and of which code, ``figures`` is a task's
    :class:`~benchmarks.comparing.Figures` as plain data, ``cause`` says why a row isn't done,
    ``seconds`` is CPU time of the compression with its own validation.
    """

    key: str
    model: str
    recipe: str
    settings: tuple[str, ...]
    package: str
    runtime: str
    commit: str
    date: str
    status: Status
    cause: str = ""
    samples: int = 0
    file_bytes: tuple[int, int] | None = None
    gzip_bytes: tuple[int, int] | None = None
    macs: tuple[int | None, int | None] | None = None
    latency_ms: tuple[float, float] | None = None
    load_ratio: float | None = None
    figures: Mapping[str, Any] | None = None
    valid: bool = False
    holds: bool = False
    steps_back: int = 0
    only_tidied: bool = False
    warnings: tuple[str, ...] = ()
    seconds: float = 0.0


class Store:
    """A folder of rows."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def read(self, key: str) -> Row | None:
        """The row of a key, None if there is none yet."""
        path = self.folder / f"{key}.json"
        return _row(path) if path.is_file() else None

    def write(self, row: Row) -> None:
        """Keep a row, whole or not at all."""
        self.folder.mkdir(parents=True, exist_ok=True)
        part = self.folder / f"{row.key}.part"
        part.write_text(json.dumps(asdict(row), indent=1) + "\n", encoding="utf-8")
        part.replace(self.folder / f"{row.key}.json")

    def latest(self) -> list[Row]:
        """The last row of each model, recipe and settings."""
        found: dict[tuple[str, str, tuple[str, ...]], Row] = {}
        for row in sorted(map(_row, self.folder.glob("*.json")), key=lambda row: row.date):
            found[row.model, row.recipe, row.settings] = row
        return list(found.values())


def key_of(model: str, recipe: str, asked: Mapping[str, Any], commit: str) -> str:
    """A name for a row: readable, and different for whatever may change the row."""
    whole = [model, asked, VERSION, runtime_version(), commit]
    text = json.dumps(whole, sort_keys=True, default=str)
    return f"{model}--{recipe}--{hashlib.sha256(text.encode()).hexdigest()[:10]}"


def commit_of_code() -> str:
    """The package's commit, with a sum of its source files where they differ from it."""
    folder = Path(onnxslim_tk.__file__).parent
    try:
        commit = _git(folder, "rev-parse", "--short", "HEAD")
        if not _git(folder, "status", "--porcelain", "--", "."):
            return commit
    except (OSError, subprocess.CalledProcessError):
        commit = "unknown"
    total = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        total.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes())
    return f"{commit}+{total.hexdigest()[:8]}"


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def _row(path: Path) -> Row:
    data = json.loads(path.read_text(encoding="utf-8"))
    known = {field.name for field in fields(Row)}
    values = {name: _frozen(value) for name, value in data.items() if name in known}
    return Row(**values)


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
