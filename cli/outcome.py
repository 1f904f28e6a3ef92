"""A report on its way out: to a file, to tables or JSON, and into the exit code."""

from collections.abc import Mapping
from typing import Final

import typer

from onnxslim_tk.errors import BudgetError
from onnxslim_tk.measure.kinds import OutputKind
from onnxslim_tk.report.as_json import json_text, report_data, write_report
from onnxslim_tk.report.outcome import Report
from onnxslim_tk.report.summary import Figure, Summary, summarize

from .console import say, shown, warn
from .figures import real, size
from .options import Showing
from .tables import show, summary_tables

_HINT: Final = "a wrong guess is set right by --output-kind NAME=KIND"


def deliver(report: Report, showing: Showing, kinds: Mapping[str, OutputKind]) -> None:
    """Write and show ``report``; leaves with the budget's exit code where it doesn't hold."""
    if showing.report is not None:
        write_report(report, showing.report)
    summary = summarize(report)
    for warning in summary.warnings:
        warn(warning)
    if showing.json:
        typer.echo(json_text(report_data(report)), nl=False)
    elif not showing.quiet:
        show(summary_tables(summary, kinds))
        for line in remarks(summary, kinds):
            say(line)
        say(headline(summary))
    if not report.holds:
        raise typer.Exit(BudgetError.exit_code)


def remarks(summary: Summary, kinds: Mapping[str, OutputKind]) -> list[str]:
    """What the tables leave unsaid."""
    found = []
    if summary.samples is not None:
        made = summary.samples
        before = f"{made.calibrate} to calibrate, {made.choose} to choose, " * bool(made.calibrate)
        found.append(f"samples: {before}{made.judge} to judge")
    guessed = [output for output in summary.outputs if output.name not in kinds]
    if guessed:
        names = ", ".join(f"{shown(output.name)} is {output.kind}" for output in guessed)
        found.append(f"guessed: {names}; {_HINT}")
    return found


def headline(summary: Summary) -> str:
    """The one line that matters, in rich's markup."""
    named = {figure.name: figure for figure in summary.figures}
    file, latency = named["file bytes"], named["latency ms"]
    parts = [_shrunk(file)]
    if latency.ratio is not None:
        parts.append(f"{real(latency.ratio, 2)} times the time per run")
    if summary.drop is not None:
        parts.append(f"{shown(summary.metric or '')} {real(summary.drop.original)} to ")
        parts[-1] += real(summary.drop.result)
    verdict = {
        "holds": "[bold green]the budget holds[/]",
        "broken": "[bold red]the budget does not hold[/]",
        "not judged": "[bold yellow]not judged[/]",
    }[summary.verdict]
    if summary.training is not None and summary.verdict == "not judged":
        verdict = f"step {summary.training.best} is kept"
    return f"{'; '.join(parts)}: {verdict}"


def _shrunk(file: Figure) -> str:
    before, after = file.original or 0, file.result or 0
    times = f", {before / after:.3g} times smaller" if 0 < after < before else ""
    return f"{size(before)} to {size(after)}{times}"
