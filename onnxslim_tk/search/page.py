"""The page: the front as an interactive plot in one file that needs no network."""

from collections.abc import Sequence
from html import escape
from typing import Any, Final

from onnxslim_tk.search.evaluate import Evaluation
from onnxslim_tk.search.extra import plotly
from onnxslim_tk.search.folder import Point
from onnxslim_tk.search.goal import Goal
from onnxslim_tk.search.strategies.strategy import Problem

_AXES: Final = {
    "size": "size, share of the original's bytes",
    "latency": "latency by the target's table, share of the original's",
    "macs": "multiply-accumulates, share of the original's",
    "quality": "loss",
}
_HEAD: Final = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
body {{ font: 15px system-ui, sans-serif; margin: 1.5rem auto; max-width: 70rem; padding: 0 1rem }}
table {{ border-collapse: collapse; width: 100% }}
th, td {{ padding: .3rem .6rem; text-align: right; border-bottom: 1px solid #8884 }}
th:first-child, td:first-child {{ text-align: left; font-family: monospace }}
</style></head><body>
<h1>{title}</h1>
<p>{lead}</p>
"""


def page(points: Sequence[Point], known: Sequence[Evaluation], problem: Problem, name: str) -> str:
    """HTML with a plot of all evaluations and the front, and a table; RecipeError without plotly.

    Whatever comes from a file is escaped.
    """
    title = f"Plans for {escape(name)}"
    held = sum((s := problem.score(e)) is not None and s[1] == 0 for e in known)
    lead = (
        f"{len(known)} plans were run, {held} keep the limits, {len(points)} are on the front. "
        "Point at a dot for its figures."
    )
    plot = str(
        _figure(points, known, problem).to_html(
            full_html=False, include_plotlyjs=True, div_id="front", config={"displaylogo": False}
        )
    )
    return (
        _HEAD.format(title=title, lead=lead)
        + plot
        + _table(points, problem.goal)
        + "</body></html>\n"
    )


def _figure(points: Sequence[Point], known: Sequence[Evaluation], problem: Problem) -> Any:
    library = plotly()
    names = problem.goal.objectives
    across = 1 if len(names) > 1 else 0
    scored = [(e, s) for e in known if (s := problem.score(e)) is not None]
    groups = (
        ("breaks a limit", "#b0b0b0", [(e, s[0]) for e, s in scored if s[1] > 0]),
        ("keeps the limits", "#5b8db8", [(e, s[0]) for e, s in scored if s[1] == 0]),
        ("front", "#d1495b", [(p.evaluation, p.point) for p in points]),
    )
    figure = library.Figure()
    for label, colour, rows in groups:
        line = label == "front" and len(names) == 2
        figure.add_trace(
            library.Scatter(
                x=[values[across] for _, values in rows],
                y=[values[0] for _, values in rows],
                text=[_hover(e, values, problem.goal) for e, values in rows],
                hoverinfo="text",
                mode="lines+markers" if line else "markers",
                line={"shape": "hv", "width": 1},
                marker={"color": colour, "size": 9 if label == "front" else 6},
                name=label,
            )
        )
    figure.update_layout(
        xaxis_title=_AXES[names[across]],
        yaxis_title=_AXES[names[0]],
        template="plotly_white",
        height=560,
        margin={"t": 20},
    )
    return figure


def _hover(evaluation: Evaluation, values: Sequence[float], goal: Goal) -> str:
    lines = [f"{n}: {v:.4g}" for n, v in zip(goal.objectives, values, strict=True)]
    figures = evaluation.figures
    if figures is not None:
        lines.append(f"{figures.bytes:,} bytes")
        if figures.drop is not None:
            lines.append(f"drop: {figures.drop:.4g}")
    return escape(f"plan-{evaluation.sha256[:12]}") + "<br>" + "<br>".join(map(escape, lines))


def _table(points: Sequence[Point], goal: Goal) -> str:
    heads = ["plan", *goal.objectives, "bytes", "measured latency", "drop on judging", "holds"]
    rows = ["".join(f"<th>{escape(head)}</th>" for head in heads)]
    for point in points:
        judged = point.judged or {}
        assert point.evaluation.figures is not None
        cells = [
            point.name,
            *(f"{value:.4f}" for value in point.point),
            f"{point.evaluation.figures.bytes:,}",
            _number(judged.get("latency_ratio")),
            _number(judged.get("drop")),
            {True: "yes", False: "no", None: ""}[judged.get("holds")],
        ]
        rows.append("".join(f"<td>{escape(cell)}</td>" for cell in cells))
    return "<table>" + "".join(f"<tr>{row}</tr>" for row in rows) + "</table>"


def _number(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float | int) else ""
