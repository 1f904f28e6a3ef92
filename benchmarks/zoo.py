"""Compresses real models and measures what that does to true metrics.

Run it from anywhere, in an environment with the package and what ``benchmarks/README.md`` names::

    python benchmarks/zoo.py --models crepe-tiny,digits-mnist --recipe small

Models and data come out of packages and stay in ``--data``; every result is kept in ``--out``,
so that a run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Final

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.catalogue import Entry, chosen, ready
from benchmarks.comparing import Comparison
from benchmarks.rows import Row, Store
from benchmarks.sources import SourceError
from benchmarks.tables import document, markdown, methods_table, zoo_table
from benchmarks.trial import carry_out, trials
from onnxslim_tk.errors import OnnxSlimError
from onnxslim_tk.passes import PASSES
from onnxslim_tk.plan.recipe import Recipe, read_recipe

MODELS: Final = Path(__file__).resolve().parents[1] / "models"


def main() -> int:
    """Run what the command line asks for."""
    given = arguments(__doc__ or "")
    given.add_argument("--recipe", action="append", help="name or file, repeatable (balanced)")
    given.add_argument("--table", action="store_true", help="print the page of all stored rows")
    given.add_argument("--as-asked", action="store_true", help="whatever the budget says")
    given.add_argument("--check-scores", action="store_true", help="measure originals only")
    asked = given.parse_args()
    store = Store(asked.out or asked.data / "results")
    try:
        entries = chosen(asked.models)
        if asked.table:
            print(document(_sorted(store.latest(), entries)), end="")
            return 0
        if asked.check_scores:
            return check_scores(entries, asked.data, asked.test_n)
        recipes = [tuned(name, asked.set) for name in asked.recipe or ["balanced"]]
    except (SourceError, OnnxSlimError) as error:
        print(error, file=sys.stderr)
        return 1
    wanted = trials(
        entries,
        recipes,
        asked.data,
        settings=tuple(asked.set),
        samples=asked.samples,
        test_items=asked.test_n,
        seed=asked.seed,
        as_asked=asked.as_asked,
    )
    rows = []
    for row in carry_out(wanted, store, asked.retry):
        print(f"{row.model}, {row.recipe}: {row.status} {row.cause}", file=sys.stderr, flush=True)
        rows.append(row)
    table = methods_table if asked.as_asked else zoo_table
    print(table(_sorted(rows, entries)), end="")
    return 0 if all(row.status == "done" for row in rows) else 1


def arguments(description: str) -> argparse.ArgumentParser:
    """The options that all benchmarks share."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    add = parser.add_argument
    add("--models", help="names, joined by commas (all)")
    add("--set", action="append", default=[], help="pass.field=value, repeatable")
    add("--samples", type=int, help="samples to compress with (the task's, 128 at most)")
    add("--test-n", type=int, help="items to measure with (the task's)")
    add("--seed", type=int, default=0, help="seed of the compression (0)")
    add("--out", type=Path, help="folder for results (DATA/results)")
    add("--data", type=Path, default=MODELS, help="folder for models and data (models)")
    add("--retry", action="store_true", help="repeat what failed or lacked something")
    return parser


def tuned(source: str, settings: list[str]) -> Recipe:
    """A recipe by name or file, with settings changed; raises RecipeError."""
    recipe = read_recipe(source, PASSES)
    for assignment in settings:
        recipe = recipe.with_setting(assignment)
    return recipe


def check_scores(entries: list[Entry], data: Path, count: int | None) -> int:
    """Print what the originals score beside what they should."""
    rows = []
    for entry in entries:
        expected = "" if entry.score is None else f"{entry.score} ({entry.items})"
        try:
            path, task = ready(entry, data)
            found = Comparison(task, path, count)
        except (SourceError, OnnxSlimError) as error:
            rows.append([entry.name, "", "", expected, str(error)])
            continue
        score = "" if found.score is None else f"{found.score:.4f}"
        rows.append([entry.name, task.metric or "none", score, expected, f"n = {len(found.items)}"])
        print(" ".join(rows[-1]), file=sys.stderr, flush=True)
    print(markdown(["model", "metric", "score", "expected (n)", "notes"], rows), end="")
    return 0


def _sorted(rows: list[Row], entries: list[Entry]) -> list[Row]:
    places = {entry.name: place for place, entry in enumerate(entries)}
    known = [row for row in rows if row.model in places]
    return sorted(known, key=lambda row: (row.recipe, row.settings, places[row.model]))


if __name__ == "__main__":
    sys.exit(main())
