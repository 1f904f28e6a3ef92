"""Rows as tables in Markdown."""

from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from math import isnan

from benchmarks.rows import Row


def zoo_table(rows: Sequence[Row]) -> str:
    """Every model under one recipe after the other."""
    header = ["model", "size", "gzip", "latency", "load", "metric (n)", "original", "result"]
    header += ["difference [95 %]", "agreement", "CPU s", "notes"]
    return _grouped(rows, _title, header, _zoo_cells)


def methods_table(rows: Sequence[Row]) -> str:
    """Every combination of methods on one model after the other."""
    header = ["methods", "size", "MACs", "latency", "metric (n)", "original", "result"]
    header += ["difference [95 %]", "agreement", "notes"]
    return _grouped(rows, lambda row: row.model, header, _methods_cells)


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; the first column is text, the rest stands on the right."""
    lines = [header, ["---", *("---:" for _ in header[1:])], *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines) + "\n"


def document(rows: Sequence[Row]) -> str:
    """A whole page about the models."""
    done = [row for row in rows if row.status == "done"]
    made = sorted({f"{row.package} ({row.commit}) on onnxruntime {row.runtime}" for row in done})
    return f"""# Benchmarks

Real models with true metrics, measured by `benchmarks/zoo.py`; `benchmarks/README.md` says where
they come from and what each metric is. Made by onnxslim-tk {"; ".join(made) or "never"}.

Size, gzip, latency and load are ratios of result to original, below 1 a gain; latency is that of
one CPU thread, load the time until a session is ready. The metric is measured on items that the
compression never saw, and n counts them (and the sources they come from, if fewer). The
difference is result less original, with the 95 % interval of a paired bootstrap over the sources;
where it holds 0, these items can't tell the two apart, and [0, 0] says that no item's score
changed, not that none ever would. Agreement is with the original's answers.

{zoo_table(rows)}"""


def _grouped(
    rows: Sequence[Row],
    title: Callable[[Row], str],
    header: Sequence[str],
    cells: Callable[[Row], list[str]],
) -> str:
    parts = []
    for name, group in groupby(rows, key=title):
        parts.append(f"## {name}\n\n" + markdown(header, map(cells, group)))
    return "\n".join(parts)


def _title(row: Row) -> str:
    return " ".join([row.recipe, *row.settings])


def _zoo_cells(row: Row) -> list[str]:
    latency = _ratio(row.latency_ms)
    load = "" if row.load_ratio is None else f"{row.load_ratio:.2f}"
    seconds = f"{row.seconds:.0f}" if row.status == "done" else ""
    sizes = [_ratio(row.file_bytes), _ratio(row.gzip_bytes), latency, load]
    return [row.model, *sizes, *_figures(row), seconds, _notes(row)]


def _methods_cells(row: Row) -> list[str]:
    ratios = [_ratio(row.file_bytes), _ratio(row.macs), _ratio(row.latency_ms)]
    return [row.recipe, *ratios, *_figures(row), _notes(row)]


def _figures(row: Row) -> list[str]:
    found = row.figures
    if found is None:
        return [""] * 5
    agreement = f"{found['agreement']} {found['agreed']:.4f}"
    count = f"{found['items']}"
    if found["groups"] != found["items"]:
        count += f" of {found['groups']}"
    if found["metric"] is None:
        return [f"none ({count})", "", "", "", agreement]
    bounds = f"{found['low']:+.4f}, {found['high']:+.4f}"
    if isnan(found["low"]):
        bounds = "too few sources"
    difference = f"{found['difference']:+.4f} [{bounds}]"
    figures = [f"{found[name]:.4f}" for name in ("original", "result")]
    return [f"{found['metric']} ({count})", *figures, difference, agreement]


def _notes(row: Row) -> str:
    if row.status != "done":
        return f"{row.status}: {row.cause}".replace("|", "/")
    notes = []
    if not row.valid:
        notes.append("INVALID")
    if row.file_bytes is not None and row.file_bytes[1] > row.file_bytes[0]:
        notes.append("LARGER")
    if row.only_tidied:
        notes.append("tidied only")
    elif row.steps_back:
        notes.append(f"{row.steps_back} steps back")
    if not row.holds:
        notes.append("over budget")
    return ", ".join(notes)


def _ratio(pair: tuple[float | None, float | None] | None) -> str:
    before, after = pair or (None, None)
    return "" if before is None or after is None or before == 0 else f"{after / before:.3f}"
