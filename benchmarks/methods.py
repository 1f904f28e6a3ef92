"""Measures each method alone and each pair of methods, without a budget.

Every recipe is carried out as it stands, at each method's own settings or those of ``--set``, so
that the table shows what methods save and cost, and how they add up::

    python benchmarks/methods.py --models crepe-tiny,digits-mnist
"""

from __future__ import annotations

import sys
from itertools import combinations
from pathlib import Path
from typing import Final

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.catalogue import chosen
from benchmarks.rows import Store
from benchmarks.sources import SourceError
from benchmarks.tables import methods_table
from benchmarks.trial import carry_out, trials
from benchmarks.zoo import arguments
from onnxslim_tk.errors import OnnxSlimError
from onnxslim_tk.passes import PASSES
from onnxslim_tk.plan.recipe import Recipe, Stage

STAGES: Final = {
    "structure": ("factorize", "channels"),
    "sparsity": ("sparsify",),
    "share": ("share",),
    "numbers": ("quantize",),
}
"""The methods in the order in which they must come."""
MODELS: Final = ("crepe-tiny", "digits-mnist")


def main() -> int:
    """Run what the command line asks for."""
    given = arguments(__doc__ or "")
    names = [name for stage in STAGES.values() for name in stage]
    given.add_argument("--methods", default=",".join(names), help="names, joined by commas (all)")
    asked = given.parse_args()
    wanted = asked.methods.split(",")
    try:
        entries = chosen(asked.models, MODELS)
        unknown = [name for name in wanted if name not in names]
        if unknown:
            raise SourceError(f"no method {unknown[0]!r}; known: {', '.join(names)}")
        ordered = [name for name in names if name in wanted]
        sets = [(), *((name,) for name in ordered), *combinations(ordered, 2)]
        recipes = [tuned(recipe(methods), asked.set) for methods in sets]
    except (SourceError, OnnxSlimError) as error:
        print(error, file=sys.stderr)
        return 1
    store = Store(asked.out or asked.data / "results" / "methods")
    planned = trials(
        entries,
        recipes,
        asked.data,
        settings=tuple(asked.set),
        samples=asked.samples,
        test_items=asked.test_n,
        seed=asked.seed,
        as_asked=True,
    )
    rows = []
    for row in carry_out(planned, store, asked.retry):
        print(f"{row.model}, {row.recipe}: {row.status} {row.cause}", file=sys.stderr, flush=True)
        rows.append(row)
    print(methods_table(rows), end="")
    return 0 if all(row.status == "done" for row in rows) else 1


def recipe(methods: tuple[str, ...]) -> Recipe:
    """Tidying, then the methods in order; none makes the recipe that others compare with."""
    stages = [Stage(name, (PASSES[name](),)) for name in ("clean", "fuse")]
    for name, known in STAGES.items():
        passes = tuple(PASSES[method]() for method in known if method in methods)
        if passes:
            stages.append(Stage(name, passes))
    return Recipe("+".join(methods) or "tidy", tuple(stages))


def tuned(plain: Recipe, settings: list[str]) -> Recipe:
    """The recipe with those settings that are for its methods; raises RecipeError."""
    held = {method.name for stage in plain.stages for method in stage.passes}
    for assignment in settings:
        if assignment.partition(".")[0].strip() in held:
            plain = plain.with_setting(assignment)
    return plain


if __name__ == "__main__":
    sys.exit(main())
