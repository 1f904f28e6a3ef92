"""The tables: a summary's data with borders around them."""

from collections.abc import Iterator, Mapping, Sequence

from rich.table import Table

from onnxslim_tk.measure.fidelity import OutputFidelity
from onnxslim_tk.measure.kinds import OutputKind
from onnxslim_tk.plan.budget import Check
from onnxslim_tk.plan.plan import Plan
from onnxslim_tk.report.floats import Floating
from onnxslim_tk.report.integers import Integers
from onnxslim_tk.report.outcome import Learned
from onnxslim_tk.report.summary import Done, Figure, Packing, Refused, Summary, milestones

from .console import out, shown
from .figures import NOTHING, count, decibels, ratio, real, share, some

_ROWS_SHOWN = 200


def show(tables: Iterator[Table] | Sequence[Table]) -> None:
    """Print tables on stdout."""
    console = out()
    for table in tables:
        console.print(table)


def summary_tables(summary: Summary, kinds: Mapping[str, OutputKind]) -> Iterator[Table]:
    """Every table of a run that has something in it; ``kinds`` are those that were given."""
    yield figures_table(summary.figures)
    if summary.outputs:
        yield outputs_table(summary.outputs, kinds)
    if summary.drop is not None:
        yield metric_table(summary)
    if summary.training is not None:
        yield from training_tables(summary.training)
    if summary.checks:
        yield checks_table(summary.checks)
    if summary.worst_layers:
        yield layers_table(summary)
    if summary.done:
        yield done_table(summary.done)
    if summary.packing:
        yield packing_table(summary.packing)
    if summary.integers:
        yield integers_table(summary.integers)
    if summary.floats:
        yield floats_table(summary.floats)
    yield from refusal_tables(summary.refusals)


def figures_table(figures: Sequence[Figure]) -> Table:
    """The five numbers and the time to load."""
    table = titled("Figures", "", "original>", "result>", "ratio>")
    for figure in figures:
        exact = figure.name != "latency ms"
        values = [
            NOTHING if value is None else count(value) if exact else real(value, 3)
            for value in (figure.original, figure.result)
        ]
        table.add_row(figure.name, *values, ratio(figure.ratio))
    return table


def outputs_table(outputs: Sequence[OutputFidelity], kinds: Mapping[str, OutputKind]) -> Table:
    """How near every output is to the original's."""
    columns = ("output", "kind", "SQNR dB>", "cosine>", "top-1>", "sequences>", "largest error>")
    table = titled("Outputs beside the original's", *columns)
    for output in outputs:
        table.add_row(
            shown(output.name),
            output.kind if output.name in kinds else f"{output.kind} (guessed)",
            decibels(output.sqnr_db),
            share(output.cosine),
            share(output.top1_agreement),
            share(output.sequence_agreement),
            real(output.max_abs_error, 3),
        )
    return table


def metric_table(summary: Summary) -> Table:
    """The task metric before and after, with the interval of what was lost."""
    drop = summary.drop
    table = titled("Metric", "", "original>", "result>", "drop>", "95 % interval>", "samples>")
    if drop is not None:
        table.add_row(
            shown(summary.metric or ""),
            real(drop.original),
            real(drop.result),
            real(drop.drop),
            f"{real(drop.low)} to {real(drop.high)}",
            count(drop.samples),
        )
    return table


def training_tables(training: Learned) -> Iterator[Table]:
    """How training went on the samples for choosing, and what the model was before it."""
    table = titled(f"Training, ended by {training.ended}", "state", "step>", "loss>", "metric>")
    for name, look in milestones(training):
        metric = NOTHING if look.metric is None else real(look.metric)
        table.add_row(name, count(look.step), real(look.loss), metric)
    yield table
    before = training.before
    if before is None:
        return
    columns = ("output", "SQNR dB>", "cosine>", "top-1>", "sequences>", "metric>")
    table = titled("As it came, beside the teacher", *columns)
    for number, output in enumerate(before.outputs):
        figures = share(output.cosine), share(output.top1_agreement)
        metric = real(before.drop.result) if before.drop is not None and not number else NOTHING
        cells = *figures, share(output.sequence_agreement), metric
        table.add_row(shown(output.name), decibels(output.sqnr_db), *cells)
    yield table


def checks_table(checks: Sequence[Check]) -> Table:
    """Every limit of the budget."""
    table = titled("Budget", "of", "figure", "value>", "limit>", "holds", "note")
    for check in checks:
        holds = "[green]yes[/]" if check.holds else "[bold red]NO[/]"
        value, limit = real(check.value), real(check.limit)
        table.add_row(
            shown(check.subject), shown(check.figure), value, limit, holds, shown(check.note)
        )
    return table


def layers_table(summary: Summary) -> Table:
    """The layers whose outputs are farthest from the original's."""
    table = titled("Worst layers", "layer", "kind", "SQNR dB>")
    for layer in summary.worst_layers:
        table.add_row(shown(layer.layer), layer.kind, decibels(layer.sqnr_db))
    return table


def done_table(done: Sequence[Done]) -> Table:
    """What was done, by stage and method."""
    columns = ("stage", "method", "rows>", "bytes saved>", "MACs saved>", "largest error>")
    table = titled("Done", *columns)
    for row in done:
        numbers = count(row.rows), count(row.bytes_saved), count(row.macs_saved)
        table.add_row(shown(row.stage), row.method, *numbers, real(row.error, 3))
    return table


def packing_table(packing: Sequence[Packing]) -> Table:
    """What was packed, by encoding, beside the entropy of the codes."""
    columns = ("encoding", "tensors>", "bytes before>", "after>", "coded>", "entropy>")
    table = titled("Packed without loss", *columns)
    for row in packing:
        coded = (count(row.coded), count(row.entropy)) if row.coded else (NOTHING, NOTHING)
        numbers = count(row.tensors), count(row.bytes_before), count(row.bytes_after)
        table.add_row(row.encoding, *numbers, *coded)
    sums = (
        sum(getattr(row, name) for row in packing)
        for name in ("tensors", "bytes_before", "bytes_after", "coded", "entropy")
    )
    table.add_section()
    table.add_row("all", *map(count, sums))
    return table


def integers_table(integers: Sequence[Integers]) -> Table:
    """What runs in int8, by kind, and why the others stay in float."""
    columns = ("kind", "all>", "meant>", "formed>", "why others stay float", "of them>", "such as")
    table = titled("In integers", *columns)
    for row in integers:
        numbers = count(row.layers), count(row.meant), count(row.formed)
        head: tuple[str, ...] = (row.kind, *numbers)
        if not row.reasons:
            table.add_row(*head)
        for because in row.reasons:
            examples = some(because.examples, because.layers)
            table.add_row(*head, shown(because.reason), count(because.layers), examples)
            head = ("", "", "", "")
    return table


def floats_table(floats: Sequence[Floating]) -> Table:
    """What still runs in float, why, and the microseconds of one run by the target's table."""
    table = titled("Still in float", "operator", "why", "of them>", "us, expected>")
    for row in floats:
        time = NOTHING if row.microseconds is None else real(row.microseconds, 1)
        table.add_row(shown(row.kind), shown(row.reason), count(row.operators), time)
    return table


def refusal_tables(refusals: Sequence[Refused]) -> Iterator[Table]:
    """What was left alone, and what was done in another way than a method would have; why."""
    left = [row for row in refusals if not row.instead]
    if left:
        table = titled("Left alone", "method", "reason", "layers>", "such as")
        for row in left:
            examples = some(row.examples, row.layers)
            table.add_row(row.method, shown(row.reason), count(row.layers), examples)
        yield table
    others = [row for row in refusals if row.instead]
    if others:
        columns = ("method", "reason", "instead", "layers>", "such as")
        table = titled("Done in another way", *columns)
        for row in others:
            examples = some(row.examples, row.layers)
            cells = shown(row.reason), shown(row.instead), count(row.layers), examples
            table.add_row(row.method, *cells)
        yield table


def plan_table(plan: Plan) -> Table:
    """A plan's rows."""
    numbers = ("setting>", "bytes saved>", "MACs saved>", "error>")
    columns = ("stage", "method", "target", *numbers, "why")
    rows = [(stage.stage, row) for stage in plan.stages for row in stage.rows]
    left = f", the first {_ROWS_SHOWN}" if len(rows) > _ROWS_SHOWN else ""
    table = titled(f"Plan: {len(rows)} rows{left}", *columns)
    for stage, row in rows[:_ROWS_SHOWN]:
        error = real(row.error, 3) + (" (measured)" if row.measured else "")
        saved = count(row.bytes_saved), count(row.macs_saved)
        target = some(row.targets[:1], len(row.targets))
        cells = shown(str(row.setting)), *saved, error, shown(row.why)
        table.add_row(shown(stage), row.method, target, *cells)
    return table


def titled(title: str, *columns: str) -> Table:
    """A table; a heading that ends in ``>`` is one of numbers."""
    table = Table(title=title, title_justify="left", title_style="bold")
    for column in columns:
        right = column.endswith(">")
        table.add_column(
            column.removesuffix(">"), justify="right" if right else "left", overflow="fold"
        )
    return table
