"""Strategies that are samplers of optuna: a study in memory that is asked and told."""

from collections.abc import Sequence
from math import isfinite
from typing import Any, Final

from onnxslim_tk.search.evaluate import Evaluation
from onnxslim_tk.search.extra import optuna
from onnxslim_tk.search.space import Genome
from onnxslim_tk.search.strategies.knapsack import Knapsack
from onnxslim_tk.search.strategies.strategy import Problem

_VIOLATION: Final = "violation"
_FAR: Final = 1e6


class Sampled:
    """What the samplers share: genes as whole numbers, limits as constraints, knapsack seeds.

    ``seeds`` of the knapsack's points are asked first.
    """

    seeds: int

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._start = Knapsack(problem)
        self._library = library = optuna()
        space = problem.space
        self._ranges = {
            space.name(k): library.distributions.IntDistribution(0, size - 1)
            for k, size in enumerate(space.sizes)
        }
        directions = ["minimize"] * len(problem.goal.objectives)
        self._study = library.create_study(directions=directions, sampler=self.sampler(library))
        self._trials: dict[Genome, list[Any]] = {}
        self._seeded = 0

    def sampler(self, library: Any) -> Any:
        """The sampler of optuna."""
        raise NotImplementedError

    def ask(self, count: int) -> list[Genome]:
        """The next genomes: seeds at first, then what the sampler draws."""
        if self._seeded < self.seeds:
            seeds = self._start.ask(min(count, self.seeds - self._seeded))
            self._seeded = self._seeded + len(seeds) if seeds else self.seeds
            for genome in seeds:
                self._study.enqueue_trial(dict(zip(self._ranges, genome, strict=True)))
            if seeds:
                return [self._drawn() for _ in seeds]
        return [self._drawn() for _ in range(count)]

    def tell(self, evaluations: Sequence[Evaluation]) -> None:
        """Tell the study; what others asked for joins it as well."""
        self._start.tell(evaluations)
        states = self._library.trial.TrialState
        for evaluation in evaluations:
            score = self._problem.score(evaluation)
            values = None if score is None else [min(v, _FAR) for v in score[0]]
            violation = _FAR if score is None or not isfinite(score[1]) else score[1]
            waiting = self._trials.pop(evaluation.genome, [])
            for trial in waiting:
                trial.set_constraint(_VIOLATION, violation)
                state = states.FAIL if values is None else states.COMPLETE
                self._study.tell(trial, values, state=state)
            if not waiting and values is not None:
                self._join(evaluation.genome, values, violation)

    def _join(self, genome: Genome, values: list[float], violation: float) -> None:
        """Add what this strategy did not ask for."""
        self._study.add_trial(
            self._library.create_trial(
                values=values,
                params=dict(zip(self._ranges, genome, strict=True)),
                distributions=self._ranges,
                constraints={_VIOLATION: violation},
            )
        )

    def _drawn(self) -> Genome:
        trial = self._study.ask(self._ranges)
        genome = tuple(int(trial.params[name]) for name in self._ranges)
        self._trials.setdefault(genome, []).append(trial)
        return genome
