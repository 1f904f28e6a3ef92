"""``optimize`` for many models at once: every one on its own, and one manifest of all."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import typer

from onnxslim_tk.errors import BudgetError
from onnxslim_tk.measure.kinds import OutputKind
from onnxslim_tk.measure.validate import Progress
from onnxslim_tk.pipeline.many import MANIFEST, Job, Row, names_of, optimize_many
from onnxslim_tk.pipeline.workers import Place
from onnxslim_tk.report.outcome import Report

from .console import err, say, shown, visible, warn
from .figures import count, ratio
from .options import Choices, reach_module
from .supervise import going_on
from .tables import show, titled

Call = Callable[[Path, Path, Choices, Progress], tuple[Report, Mapping[str, OutputKind]]]


@dataclass(frozen=True, slots=True)
class _Made:
    """A job's call, which a worker gets as data."""

    call: Call
    source: Path
    result: Path
    choices: Choices

    def __call__(self, progress: Progress) -> Report:
        reach_module(self.choices.metric)
        return self.call(self.source, self.result, self.choices, progress)[0]


def optimize_all(
    sources: Sequence[Path], folder: Path, choices: Choices, place: Place, quiet: bool, call: Call
) -> None:
    """Optimize all models into ``folder``; leaves with the exit code of the worst of them."""
    if folder.exists() and not folder.is_dir():
        raise typer.BadParameter(f"{folder} is not a folder", param_hint="--out-dir")
    jobs, taken = [], {source.resolve(): source for source in sources}
    for source, name in zip(sources, names_of(sources), strict=True):
        result = folder.absolute() / name
        if result.resolve() in taken:
            other = taken[result.resolve()]
            whose = "its result" if other == source else f"the result of {source}"
            raise typer.BadParameter(
                f"{other} lies where {whose} would; take another folder", param_hint="--out-dir"
            )
        own = replace(choices, calibration=samples_for(source, choices.calibration))
        settings = repr((own, choices.chosen(), _state(own.calibration)))
        call_here = _Made(call, source.absolute(), result, own)
        jobs.append(Job(name, source.absolute(), result, call_here, settings))
    if len({job.result for job in jobs}) < len(jobs):
        raise typer.BadParameter("a model is named twice", param_hint="IN")
    with going_on(folder):
        rows = optimize_many(jobs, folder, place, None if quiet else _tell)
    if not quiet:
        _show(rows, folder)
    if any(row.ending == "failed" for row in rows):
        raise typer.Exit(1)
    if any(row.ending == "budget" for row in rows):
        raise typer.Exit(BudgetError.exit_code)


def samples_for(source: Path, given: Path | None) -> Path | None:
    """A model's own samples in a folder that has some by its name, or what was given for all."""
    if given is None:
        return None
    for place in (given / f"{source.stem}.npz", given / source.stem):
        if place.exists():
            return place.absolute()
    return given.absolute()


def _state(path: Path | None) -> list[Any]:
    """What tells whether samples have changed since."""
    if path is None or not path.exists():
        return []
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    found = [(file, file.stat()) for file in files]
    return [(str(file), state.st_size, state.st_mtime_ns) for file, state in found]


def _tell(row: Row, done: int, total: int) -> None:
    if row.ending == "failed":
        warn(f"{row.name}: {row.error}")
    err().print(
        f"{done} of {total}: {visible(row.name)} {row.ending}", markup=False, soft_wrap=True
    )


def _show(rows: Sequence[Row], folder: Path) -> None:
    table = titled("Models", "model", "ending", "bytes>", "result>", "ratio>", "latency>", "drop>")
    endings = {"done": "[green]done[/]", "budget": "[yellow]breaks the budget[/]"}
    for row in rows:
        share = row.result_bytes / row.original_bytes if row.original_bytes else None
        table.add_row(
            shown(row.name),
            endings.get(row.ending, "[bold red]failed[/]"),
            count(row.original_bytes or None),
            count(row.result_bytes or None),
            ratio(share),
            ratio(row.latency_ratio),
            ratio(row.drop),
        )
    show([table])
    before, after = (sum(getattr(r, n) for r in rows) for n in ("original_bytes", "result_bytes"))
    saved = f", {after / before:.3g} of the bytes" if before else ""
    done = sum(row.ending == "done" for row in rows)
    say(f"{done} of {len(rows)} done{saved}; {shown(str(folder / MANIFEST))} tells all")
