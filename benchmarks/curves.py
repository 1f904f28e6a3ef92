"""Draws size against metric, from 8 bits a weight to 1.6.

Every point is the recipe ``small`` carried out with one size of codebook for all layers and no
budget, so that the curve shows what the bits alone cost::

    python benchmarks/curves.py --efforts normal,thorough --plot docs/curves

Rows are kept like those of ``zoo.py``, so a run that was stopped goes on where it was. ``--plot``
writes what is there as a table (.csv) and a drawing (.svg).
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.catalogue import chosen
from benchmarks.rows import Row, Store
from benchmarks.sources import SourceError
from benchmarks.trial import carry_out, trials
from benchmarks.zoo import arguments, tuned
from onnxslim_tk.errors import OnnxSlimError

MODELS: Final = ("ppocr-v4-rec", "efficientnet-lite0", "minilm-l6")
CLUSTERS: Final = (256, 64, 32, 16, 8, 6, 4, 3)
"""Entries of the codebooks: 8, 6, 5, 4, 3, 2.6, 2 and 1.6 bits."""
_FIGURES: Final = (
    "metric",
    "items",
    "original",
    "result",
    "low",
    "high",
    "agreement",
    "agreed",
)
_COLUMNS: Final = ("model", "clusters", "effort", "size", *_FIGURES, "seconds", "commit")


def main() -> int:
    """Run what the command line asks for."""
    given = arguments(__doc__ or "")
    given.add_argument("--efforts", default="normal", help="joined by commas (normal)")
    given.add_argument("--clusters", default=",".join(map(str, CLUSTERS)), help="joined by commas")
    given.add_argument("--plot", type=Path, help="write PLOT.csv and PLOT.svg of all stored rows")
    asked = given.parse_args()
    store = Store(asked.out or asked.data / "results" / "curves")
    done = True
    try:
        entries = chosen(asked.models, MODELS)
        for effort in asked.efforts.split(","):
            for clusters in asked.clusters.split(","):
                settings = [f"share.clusters={clusters}", f"share.effort={effort}", *asked.set]
                wanted = trials(
                    entries,
                    [tuned("small", settings)],
                    asked.data,
                    settings=tuple(settings),
                    samples=asked.samples,
                    test_items=asked.test_n,
                    seed=asked.seed,
                    as_asked=True,
                )
                for row in carry_out(wanted, store, asked.retry):
                    print(*row.settings, row.model, row.status, row.cause, file=sys.stderr)
                    done = done and row.status == "done"
    except (SourceError, OnnxSlimError) as error:
        print(error, file=sys.stderr)
        return 1
    if asked.plot is not None:
        points = [found for row in store.latest() if (found := point(row))]
        write(points, asked.plot.with_suffix(".csv"))
        draw(points, asked.plot.with_suffix(".svg"))
    return 0 if done else 1


def point(row: Row) -> dict[str, str | float] | None:
    """A point of a curve; None if the row isn't one."""
    asked = dict(setting.split("=", 1) for setting in row.settings)
    figures, sizes = row.figures, row.file_bytes
    if row.status != "done" or figures is None or sizes is None or "share.clusters" not in asked:
        return None
    found: dict[str, str | float] = {name: figures[name] for name in _FIGURES}
    return found | {
        "model": row.model,
        "clusters": int(asked["share.clusters"]),
        "effort": asked["share.effort"],
        "size": round(sizes[1] / sizes[0], 4),
        "seconds": round(row.seconds),
        "commit": row.commit,
    }


def write(points: Sequence[dict[str, str | float]], path: Path) -> None:
    """The points as a table, in the order of models, efforts and sizes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, _COLUMNS, lineterminator="\n")
        table.writeheader()
        for found in _sorted(points):
            table.writerow({name: _short(found[name]) for name in _COLUMNS})


def draw(points: Sequence[dict[str, str | float]], path: Path) -> None:
    """A panel for each model: the metric above the size, a line for each effort."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "onnxslim-tk"  # the same points, the same bytes
    from matplotlib import pyplot

    models = list(dict.fromkeys(str(found["model"]) for found in _sorted(points)))
    figure, panels = pyplot.subplots(
        1, len(models), figsize=(4.2 * len(models), 3.6), squeeze=False, layout="constrained"
    )
    for panel, model in zip(panels[0], models, strict=True):
        own = [found for found in _sorted(points) if found["model"] == model]
        for effort in dict.fromkeys(str(found["effort"]) for found in own):
            line = [found for found in own if found["effort"] == effort]
            panel.errorbar(
                [float(found["size"]) for found in line],
                [float(found["result"]) for found in line],
                yerr=_bounds(line),
                marker="o",
                markersize=4,
                capsize=2,
                label=effort,
            )
        panel.axhline(float(own[0]["original"]), color="grey", linestyle=":", label="original")
        panel.set(title=model, xlabel="size, of the original", ylabel=str(own[0]["metric"]))
        panel.legend()
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def _bounds(line: Sequence[dict[str, str | float]]) -> list[list[float]]:
    """Distances down and up: the interval of the difference, laid around the result."""
    lost = [float(found["result"]) - float(found["original"]) for found in line]
    below = [max(0.0, gap - float(found["low"])) for gap, found in zip(lost, line, strict=True)]
    above = [max(0.0, float(found["high"]) - gap) for gap, found in zip(lost, line, strict=True)]
    return [below, above]


def _sorted(points: Sequence[dict[str, str | float]]) -> list[dict[str, str | float]]:
    places = {name: place for place, name in enumerate(MODELS)}
    return sorted(
        points,
        key=lambda found: (
            places.get(str(found["model"]), len(places)),
            str(found["model"]),
            str(found["effort"]),
            -float(found["clusters"]),
        ),
    )


def _short(value: str | float) -> str | float:
    return round(value, 4) if isinstance(value, float) else value


if __name__ == "__main__":
    sys.exit(main())
