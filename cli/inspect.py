"""``inspect``: what a look at one model tells."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from onnxslim_tk.errors import CalibrationError, SessionError
from onnxslim_tk.graph.formats import told
from onnxslim_tk.graph.model import Model
from onnxslim_tk.measure.observe import observed_shapes
from onnxslim_tk.measure.runtime import Session
from onnxslim_tk.measure.samples import random_feed
from onnxslim_tk.measure.validate import Progress
from onnxslim_tk.pipeline import load
from onnxslim_tk.pipeline.files import stored_provenance
from onnxslim_tk.report.as_json import json_text, plain
from onnxslim_tk.report.overview import Overview, overview

from .console import say, shown, warn
from .figures import count, dims, size
from .progress import Steps
from .supervise import Isolation, supervise
from .tables import show

FORMAT = 1


def inspect(
    model: Annotated[Path, typer.Argument(metavar="MODEL", show_default=False)],
    isolation: Isolation,
    json: Annotated[
        bool, typer.Option("--json", help="Print it as JSON, and nothing else.")
    ] = False,
) -> None:
    """Show a model's inputs, outputs and layers, and what it says of its making."""
    with Steps(json) as steps:
        found, trouble = supervise(partial(_look, model), model, isolation, steps)
    if trouble:
        warn(f"MACs are unknown: {trouble}")
    if json:
        typer.echo(json_text({"format": FORMAT, **plain(found)}), nl=False)
        return
    show([_facts(found), _ports(found), _layers(found)])
    if found.provenance:
        say("made by onnxslim-tk:")
        for key, value in found.provenance.items():
            say(f"  {shown(key)}: {shown(value)}")


def _look(path: Path, progress: Progress) -> tuple[Overview, str]:
    progress("read the model", 0, 1)
    opened = load(path)
    progress("run it once", 0, 1)
    shapes, trouble = _shapes(path, opened)
    return overview(opened, shapes, stored_provenance(opened)), trouble


def _shapes(path: Path, model: Model) -> tuple[dict[str, tuple[int, ...]], str]:
    """Shapes seen in a run with made-up inputs, or why there was none."""
    try:
        feed = random_feed(Session(path).inputs, seed=0)
        return observed_shapes(model, feed), ""
    except (SessionError, CalibrationError) as error:
        return {}, str(error)


def _facts(found: Overview) -> Table:
    table = Table(title="Model", title_justify="left", title_style="bold", show_header=False)
    rows = {
        "file": f"{count(found.file_bytes)} bytes ({size(found.file_bytes)})",
        "SHA-256": found.sha256,
        "producer": shown(found.producer) or "unnamed",
        "operator sets": ", ".join(f"{shown(d)} {v}" for d, v in found.domains.items()),
        "IR version": str(found.ir_version),
        "nodes": count(found.nodes),
        "parameters": count(found.parameters),
        "MACs, one sample": count(found.macs),
        "layers": count(len(found.layers)),
        "layers in bodies": f"{count(found.layers_in_bodies)} with "
        f"{count(found.weights_in_bodies)} weights",
        "already quantized": f"{count(found.quantized_layers)} layers, "
        f"{count(found.quantize_operators)} quantizing operators",
    }
    if found.formats:
        rows["number formats"] = told(found.formats)
    if found.custom_operators:
        custom = found.custom_operators.items()
        rows["custom operators"] = ", ".join(f"{shown(name)} x {n}" for name, n in custom)
    for name, text in rows.items():
        table.add_row(name, text)
    return table


def _ports(found: Overview) -> Table:
    table = Table("", "name", "type", "shape", title="Inputs and outputs", title_justify="left")
    table.title_style = "bold"
    for role, ports in (("input", found.inputs), ("output", found.outputs)):
        for port in ports:
            table.add_row(role, shown(port.name), shown(port.dtype), dims(port.shape))
    return table


def _layers(found: Overview) -> Table:
    table = Table(title="Layers", title_justify="left", title_style="bold")
    for heading in ("id", "node", "kind", "shape"):
        table.add_column(heading, overflow="fold")
    for heading in ("weights", "MACs"):
        table.add_column(heading, justify="right")
    table.add_column("stored")
    for layer in found.layers:
        notes = [layer.stored]
        if layer.entropy is not None:
            notes.append(f"{layer.entropy:.2f} bits of entropy")
        notes += (
            ["scaled"] * layer.scaled + ["shared"] * layer.shared + ["in a body"] * layer.in_body
        )
        others = [name for name in layer.names if name != layer.id]
        table.add_row(
            shown(layer.id),
            ", ".join(map(shown, others)),
            layer.kind,
            dims(layer.shape),
            count(layer.weights),
            count(layer.macs),
            ", ".join(notes),
        )
    return table
