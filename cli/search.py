"""``search``: many plans for one model, and the front of what they come to."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from math import log10
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.live import Live
from rich.table import Table

from onnxslim_tk.errors import BudgetError
from onnxslim_tk.measure.validate import Progress
from onnxslim_tk.passes import PASSES
from onnxslim_tk.pipeline.run import open_workshop
from onnxslim_tk.plan.budget import Budget
from onnxslim_tk.plan.recipe import Recipe, parse_recipe
from onnxslim_tk.search import Cargo, Effort, Goal, Place, pack_up
from onnxslim_tk.search import search as searched
from onnxslim_tk.search.folder import Folder, Point
from onnxslim_tk.search.goal import OBJECTIVES
from onnxslim_tk.search.run import State, Watch
from onnxslim_tk.search.space import RECIPE
from onnxslim_tk.search.strategies import STRATEGIES

from .console import err, say, shown, warn
from .effort import Effort as Machine
from .figures import count, ratio, real
from .options import Choices, Source, reach_module
from .progress import Steps
from .supervise import Isolation, going_on, supervise
from .tables import show, titled

_PANEL: Final = "Search"
_ROWS: Final = 12
_STEPS: Final = ("search", "done")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted(Choices):
    """Choices, where all methods are tried unless a recipe is named."""

    recipe: Annotated[
        str,
        typer.Option(
            rich_help_panel="Recipe",
            metavar="NAME|FILE",
            help="Whose methods are tried: by default all of them; light, balanced, small, or a "
            "YAML file.",
        ),
    ] = "search"

    def all_or_named(self) -> Recipe:
        """The recipe whose methods make the space."""
        if self.recipe != "search":
            return self.chosen()
        recipe = parse_recipe(RECIPE, "search", PASSES)
        for assignment in self.settings or ():
            recipe = recipe.with_setting(assignment)
        return replace(recipe, exclude=tuple(self.exclude or ()), budget=self.budget(Budget()))


@dataclass(frozen=True, slots=True, kw_only=True)
class Looking:
    """What is looked for, how and how long."""

    objective: Annotated[
        str,
        typer.Option(
            rich_help_panel=_PANEL,
            metavar="NAME[,NAME]",
            help=f"What is to be small: {', '.join(OBJECTIVES)} (quality: the metric's drop, or "
            "the error of the outputs).",
        ),
    ] = "size,latency"
    strategy: Annotated[
        str, typer.Option(rich_help_panel=_PANEL, metavar="NAME", help=f"{', '.join(STRATEGIES)}.")
    ] = "auto"
    evaluations: Annotated[
        int | None,
        typer.Option(
            rich_help_panel=_PANEL, min=1, metavar="N", help="Run so many plans; 60 by default."
        ),
    ] = None
    minutes: Annotated[
        float | None,
        typer.Option(
            rich_help_panel=_PANEL,
            metavar="X",
            help="Begin no new batch of plans after so long; no limit by default.",
        ),
    ] = None
    batch: Annotated[
        int,
        typer.Option(
            rich_help_panel=_PANEL,
            min=1,
            metavar="N",
            help="Plans that are asked for at a time, whatever --jobs; take as many as there are "
            "workers, or a few times more.",
        ),
    ] = 8
    chosen: Annotated[
        int,
        typer.Option(
            rich_help_panel=_PANEL,
            min=1,
            metavar="N",
            help="Judge so many plans of the front at the end.",
        ),
    ] = 8
    cluster: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=_PANEL,
            metavar="dask://HOST:PORT|ray://HOST:PORT",
            help="Run plans on the workers of this cluster in place of --jobs processes here.",
        ),
    ] = None
    storage: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=_PANEL,
            metavar="URL|FILE",
            help="Where evaluations are kept, for machines that search together: a database "
            "(sqlite:///FILE, postgresql://...) or a journal; by default a journal in OUT_DIR.",
        ),
    ] = None

    strategy_seed: Annotated[
        int | None,
        typer.Option(
            rich_help_panel=_PANEL,
            min=0,
            metavar="N",
            help="Seed of the strategy alone, --seed by default: machines that share a study "
            "take the same --seed and one of these each.",
        ),
    ] = None

    def effort(self, place: Place) -> Effort:
        """What the library is told."""
        unlimited = self.evaluations is None and self.minutes is not None
        usual = None if unlimited else 60
        return Effort(
            evaluations=usual if self.evaluations is None else self.evaluations,
            minutes=self.minutes,
            strategy=self.strategy,
            batch=self.batch,
            chosen=self.chosen,
            storage=self.storage,
            seed=self.strategy_seed,
            place=place,
        )


def search(
    source: Source,
    folder: Annotated[
        Path, typer.Argument(metavar="OUT_DIR", help="The run folder.", show_default=False)
    ],
    looking: Looking,
    choices: Wanted,
    machine: Machine,
    isolation: Isolation,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print warnings and errors only.")] = False,
) -> None:
    """Run many plans for IN and leave the front of what they come to in OUT_DIR.

    Limits (--max-drop, --min-sqnr, --max-size and so on) hold for every plan of the front.
    OUT_DIR has front.json, the models with their plans, and front.html, an interactive plot. The
    same call goes on where an earlier one was ended.
    """
    machine.check()
    if folder.exists() and not folder.is_dir():
        raise typer.BadParameter(f"{folder} is not a folder", param_hint="OUT_DIR")
    limits = isolation.limits()
    place = Place(machine.jobs, looking.cluster, isolation.isolate, limits.seconds, limits.memory)
    effort = looking.effort(place)
    recipe = choices.all_or_named()
    goal = _goal(looking, recipe.budget)
    # It comes back with the model, and goes on to the workers.
    reach_module(choices.metric)
    call = partial(_packed, source, recipe, choices, machine)
    with Steps(quiet) as steps:
        cargo = supervise(call, source, isolation, steps)
    goal = replace(goal, limits={**goal.limits, **_size_limit(recipe.budget, cargo)})
    with going_on(folder), _watching(quiet, goal) as watch:
        made = searched(cargo, folder, goal, effort, watch)
    _tell(made, quiet)


def _packed(
    source: Path, recipe: Recipe, choices: Wanted, machine: Machine, progress: Progress
) -> Cargo:
    """The model with its samples; limits of size and the like are the search's own."""
    options = machine.spent_on(choices.options(source, choices.seed, progress))
    own = replace(recipe.budget, max_size=None, max_macs=None, max_latency=None, max_params=None)
    return pack_up(open_workshop(source, replace(recipe, budget=own), options, None))


def _goal(looking: Looking, budget: Budget) -> Goal:
    names = tuple(name.strip() for name in looking.objective.split(","))
    return Goal(names, budget.shares())


def _size_limit(budget: Budget, cargo: Cargo) -> dict[str, float]:
    most = budget.most_bytes(cargo.bytes)
    return {} if most is None else {"size": most / cargo.bytes}


@contextmanager
def _watching(quiet: bool, goal: Goal) -> Iterator[Watch]:
    """A live table of the front on a terminal, a line for each batch elsewhere."""
    console = err()
    if quiet:
        yield _silent
        return
    if not console.is_terminal:
        yield partial(_line, goal)
        return
    last: list[State] = []
    with Live(console=console, transient=True, auto_refresh=False) as live:

        def watch(state: State) -> None:
            if state.points:
                last[:] = [state]
            points = last[0].points if last else ()
            live.update(_table(state, points, goal), refresh=True)

        yield watch


def _silent(state: State) -> None:
    """Show nothing."""


def _line(goal: Goal, state: State) -> None:
    if state.step in _STEPS and state.points:
        best = ", ".join(
            f"{name} {real(min(p.point[k] for p in state.points), 3)}"
            for k, name in enumerate(goal.objectives)
        )
        said = f"{_done(state)}: {len(state.points)} on the front, least {best}"
        err().print(said, markup=False, soft_wrap=True)


def _done(state: State) -> str:
    of = "" if state.total is None else f" of {state.total}"
    return f"{state.done}{of}" if state.step in (*_STEPS, "evaluate") else state.step


def _table(state: State, points: Sequence[Point], goal: Goal) -> Table:
    title = f"{state.step} {state.done}" + ("" if state.total is None else f" of {state.total}")
    table = titled(f"{title}: {len(points)} on the front", "plan", *_heads(goal))
    for point in points[:_ROWS]:
        table.add_row(point.name, *_cells(point))
    return table


def _heads(goal: Goal) -> list[str]:
    return [*(f"{name}>" for name in goal.objectives), "bytes>", "drop>", "dB>"]


def _cells(point: Point) -> list[str]:
    figures = point.evaluation.figures
    assert figures is not None
    decibels = "-" if figures.error <= 0 else real(-10 * log10(figures.error), 3)
    return [
        *(ratio(value) for value in point.point),
        count(figures.bytes),
        ratio(figures.drop),
        decibels,
    ]


def _tell(made: Folder, quiet: bool) -> None:
    """The front as it was judged; leaves with the budget's exit code where nothing holds."""
    points = made.last
    if not quiet:
        table = titled(
            "Front", "plan", *_heads(made.goal), "measured latency>", "drop, judged>", "holds"
        )
        for point in points:
            judged = point.judged or {}
            holds = {True: "[green]yes[/]", False: "[bold red]NO[/]", None: "-"}
            table.add_row(
                point.name,
                *_cells(point),
                ratio(judged.get("latency_ratio")),
                ratio(judged.get("drop")),
                holds[judged.get("holds")],
            )
        show([table])
        say(f"models, plans and front.html are in {shown(str(made.path))}")
    if not any(p.violation == 0 for p in points):
        warn("no plan keeps the limits; the nearest one is in the folder")
        raise typer.Exit(BudgetError.exit_code)
    if not any((p.judged or {}).get("holds") for p in points):
        warn("on the samples for judging, no chosen plan keeps the limits")
        raise typer.Exit(BudgetError.exit_code)
