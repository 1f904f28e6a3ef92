"""The search: scout, ask, evaluate, tell; all that is found is kept at once."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from onnxslim_tk.errors import ModelError, RecipeError
from onnxslim_tk.pipeline.workers import Lost, Place, Workers
from onnxslim_tk.search.archive import Archive, journal
from onnxslim_tk.search.cargo import Cargo
from onnxslim_tk.search.evaluate import Evaluation, Found, evaluate, finish, measure, scout
from onnxslim_tk.search.extra import optuna, plotly, torch
from onnxslim_tk.search.folder import Folder, Point
from onnxslim_tk.search.forecast import Forecaster
from onnxslim_tk.search.goal import Figures, Goal
from onnxslim_tk.search.page import page
from onnxslim_tk.search.relax import Leaning, relax
from onnxslim_tk.search.space import Genome, Space
from onnxslim_tk.search.strategies import NEED_TORCH, STRATEGIES
from onnxslim_tk.search.strategies.strategy import Problem

_PARTS: Final = 16
# A strategy that only asks for what it was told already has come to its end.
_IDLE: Final = 20


@dataclass(frozen=True, slots=True)
class Effort:
    """How long is searched, how, and where.

    ``evaluations`` is the number of plans that are run, ``minutes`` the time after which no new
    batch begins; None sets no limit, and one of them has to. ``batch`` genomes are asked for at
    a time, whatever the number of workers, so that results don't depend on it. ``storage`` is the
    URL of a database that machines share, by default a journal in the run folder. ``chosen`` plans
    at most are judged at the end. ``seed`` of the strategy's draws is by default that of the
    samples' split: machines that share a study need the same split and seeds of their own.
    """

    evaluations: int | None = 60
    minutes: float | None = None
    strategy: str = "auto"
    batch: int = 8
    chosen: int = 8
    storage: str | None = None
    seed: int | None = None
    place: Place = field(default_factory=Place)

    def __post_init__(self) -> None:
        if self.evaluations is None and self.minutes is None:
            raise RecipeError("search: a number of evaluations or of minutes is needed")
        for name in ("evaluations", "minutes", "batch", "chosen"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise RecipeError(f"search: {name} must be above 0, got {value}")
        if self.strategy not in STRATEGIES:
            known = ", ".join(STRATEGIES)
            raise RecipeError(f"search: no strategy {self.strategy!r}; there are {known}")


@dataclass(frozen=True, slots=True)
class State:
    """How far a search is: the step, what is done of it, and the front so far."""

    step: str
    done: int
    total: int | None
    points: Sequence[Point] = ()


Watch = Callable[[State], None]


def unwatched(state: State) -> None:
    """Show nothing."""


def search(
    cargo: Cargo, folder: Path, goal: Goal, effort: Effort, watch: Watch = unwatched
) -> Folder:
    """Search plans for a model, and leave front, models, plans and a page in ``folder``.

    All that is found is in the folder at once: a search that was ended, or killed, goes on where
    it was when it is begun anew with the same arguments. The same arguments and seed give the same
    front after as many evaluations, whatever the number of workers; only a shared ``storage`` and
    ``minutes`` bring the clock in. Raises an OnnxSlimError for what can't be searched.
    """
    # What is missing is said before the work that it is needed for.
    for needed in (optuna, plotly, *([torch] if effort.strategy in NEED_TORCH else [])):
        needed()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ModelError(f"search: {folder} cannot be a folder: {error.strerror}") from error
    with Workers(effort.place, cargo) as workers:
        run = _Run(cargo, Folder(folder, cargo, goal), goal, effort, watch, workers)
        run.explore()
        run.finish()
        return run.folder


class _Run:
    """One search under way."""

    def __init__(
        self,
        cargo: Cargo,
        folder: Folder,
        goal: Goal,
        effort: Effort,
        watch: Watch,
        workers: Workers,
    ) -> None:
        self._cargo, self.folder, self._goal, self._effort = cargo, folder, goal, effort
        self._watch, self._workers = watch, workers
        self._started = time.monotonic()
        self._space, self._original = self._surveyed()
        seed = cargo.options.seed if effort.seed is None else effort.seed
        self._problem = Problem(
            self._space,
            goal,
            self._original,
            Forecaster(self._space),
            seed,
            effort.evaluations,
            self._relaxed,
        )
        limits = sorted(goal.limits.items())
        label = f"{effort.strategy} {seed} {effort.batch} {goal.objectives} {limits}"
        storage = effort.storage or journal(folder.path)
        self._archive = Archive(storage, cargo.key, label, self._space)
        self._spent = 0

    def explore(self) -> None:
        """Ask, evaluate and tell until the effort is spent."""
        strategy = STRATEGIES[self._effort.strategy](self._problem)
        told: set[Genome] = set()
        idle = 0
        self._show()
        while self._goes_on() and idle < _IDLE:
            news = self._archive.news()
            if news:
                strategy.tell(news)
            genomes = strategy.ask(self._wanted())
            if not genomes:
                break
            fresh = [g for g in dict.fromkeys(genomes) if g not in told]
            idle = 0 if fresh else idle + 1
            self._evaluate([g for g in fresh if g not in self._archive.known])
            told.update(fresh)
            self._spent += len(fresh)
            strategy.tell([self._archive.known[genome] for genome in genomes])
            self._show()

    def _wanted(self) -> int:
        most = self._effort.evaluations
        return self._effort.batch if most is None else min(self._effort.batch, most - self._spent)

    def _goes_on(self) -> bool:
        minutes, most = self._effort.minutes, self._effort.evaluations
        late = minutes is not None and time.monotonic() - self._started >= 60 * minutes
        return not late and (most is None or self._spent < most)

    def _evaluate(self, genomes: Sequence[Genome]) -> None:
        """Run genomes; each is kept as it comes, with its model where that is on the front."""
        best = [(p.point, p.violation) for p in self.folder.points(self._known(), self._original)]
        arguments = [(self._space, genome, self._goal, self._original, best) for genome in genomes]
        for done, (k, found) in enumerate(self._workers.each(evaluate, arguments)):
            if isinstance(found, Lost):
                found = Found(Evaluation(genomes[k], None, trouble=found.why))
            # First the model, then the news of it: a point without a model would be no use.
            self.folder.keep(found, self._original)
            self._archive.record(found.evaluation)
            self._watch(State("evaluate", self._spent + done + 1, self._effort.evaluations))

    def _known(self) -> list[Evaluation]:
        return list(self._archive.known.values())

    def _show(self) -> None:
        points = self.folder.write(self._known(), self._original, self._spent)
        self._watch(State("search", self._spent, self._effort.evaluations, points))

    def finish(self) -> None:
        """Judge the chosen plans by the clock and by samples that nothing was chosen by."""
        points = self.folder.points(self._known(), self._original)
        chosen = self.folder.spread(points, self._effort.chosen)
        for k, point in enumerate(chosen):
            self._watch(State("judge", k, len(chosen), points))
            made = self.folder.path / point.model
            if point.name not in self.folder.judged or not made.exists():
                report, data, plan = self._workers.one(finish, self._space, point.evaluation.genome)
                self.folder.judge(point, report, data, plan)
        points = self.folder.write(self._known(), self._original, self._spent)
        self.folder.write_page(page(points, self._known(), self._problem, self._cargo.name))
        self._watch(State("done", self._spent, self._effort.evaluations, points))

    def _surveyed(self) -> tuple[Space, Figures]:
        """The space with measured errors, from the folder where an earlier run left it there."""
        kept = self.folder.survey()
        if kept is not None:
            return kept
        self._watch(State("look at what can be done", 0, 1))
        space, original = self._workers.one(scout)
        if not space.genes:
            raise RecipeError(
                "search: no method of the recipe has anything to choose in this model"
            )
        count = min(_PARTS, len(space.genes))
        parts = [range(k, len(space.genes), count) for k in range(count)]
        errors: dict[tuple[int, int], float] = {}
        for done, (_, found) in enumerate(
            self._workers.each(measure, [(space, part) for part in parts])
        ):
            self._watch(State("measure each choice alone", done + 1, count))
            if not isinstance(found, Lost):
                errors |= found
        measured = space.with_errors(errors)
        self.folder.keep_survey(measured, original)
        return measured, original

    def _relaxed(self, leanings: Sequence[Leaning]) -> list[list[list[float]]]:
        found: list[list[list[float]]] = self._workers.one(relax, self._space, leanings)
        return found
