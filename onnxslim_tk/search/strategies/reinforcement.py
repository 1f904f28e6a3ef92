"""Reinforcement: an agent walks the genes and learns from the reward of whole plans."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from onnxslim_tk.search.evaluate import Evaluation
from onnxslim_tk.search.extra import one_torch_thread
from onnxslim_tk.search.extra import torch as torch_library
from onnxslim_tk.search.space import Genome
from onnxslim_tk.search.strategies.knapsack import leanings
from onnxslim_tk.search.strategies.strategy import Problem

_HIDDEN: Final = 64
_BATCH: Final = 64
_KEPT: Final = 4000
_DISCOUNT: Final = 1.0
_SOFT: Final = 0.02
_RATES: Final = (1e-3, 3e-3)
"""Of the actor and of the critic."""
_NOISE: Final = 0.5
_COOLING: Final = 0.96
_WARM_UP: Final = 8
_UPDATES: Final = 4
_BUDGETS: Final = (0.04, 0.6)
"""Shares of bytes and time between which each walk is given one to keep to."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class _Walk:
    """One way through all genes: what was seen, and what was done."""

    states: Floats
    actions: Floats


class Reinforcement:
    """Deep deterministic policy gradients over genes (Lillicrap et al., 2016), as AMC has them.

    At each gene the agent sees what the gene could save and lose, what is left of the model, and
    the budget of its walk, and answers a number from 0 to 1 that says how strong an option it
    takes. The answer is clipped so that the budget stays within reach of the genes to come, as in
    AMC (He et al., 2018) and PocketFlow (Wu et al., 2018). The reward comes at the end: the
    fidelity in decibels, less what limits are missed by. Needs PyTorch.
    """

    name: ClassVar[str] = "reinforcement"

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._torch = torch = torch_library()
        self._rng = np.random.default_rng((problem.seed, 4))
        self._facts = _facts(problem)
        self._leanings = leanings(problem.goal, 3)
        width = self._facts.shape[1] + 5 if len(self._facts) else 5
        generator = torch.Generator().manual_seed(problem.seed)
        self._actor = _network(torch, width, generator, squashed=True)
        self._critic = _network(torch, width + 1, generator, squashed=False)
        self._targets = [
            _network(torch, width, generator, squashed=True),
            _network(torch, width + 1, generator, squashed=False),
        ]
        for target, source in zip(self._targets, (self._actor, self._critic), strict=True):
            target.load_state_dict(source.state_dict())
        self._optimizers = [
            torch.optim.Adam(net.parameters(), lr=rate)
            for net, rate in zip((self._actor, self._critic), _RATES, strict=True)
        ]
        self._walks: dict[Genome, list[_Walk]] = {}
        self._replay: deque[tuple[Floats, float, float, Floats, bool]] = deque(maxlen=_KEPT)
        self._mean = 0.0
        self._count = 0
        self._noise = _NOISE

    def ask(self, count: int) -> list[Genome]:
        """The plans of the next walks."""
        if not len(self._facts):
            return [self._problem.space.untouched]
        return [self._walk() for _ in range(count)]

    def tell(self, evaluations: Sequence[Evaluation]) -> None:
        """Reward the walks, and learn."""
        with one_torch_thread():
            for evaluation in evaluations:
                for walk in self._walks.pop(evaluation.genome, []):
                    self._remember(walk, self._reward(evaluation))
                    self._count += 1
                    if self._count > _WARM_UP:
                        self._noise *= _COOLING
                        for _ in range(_UPDATES):
                            self._learn()

    def _reward(self, evaluation: Evaluation) -> float:
        score = self._problem.score(evaluation)
        if score is None or evaluation.figures is None:
            return -3.0
        fidelity = -np.log10(max(evaluation.figures.error, 1e-9)) / 3
        return float(min(fidelity, 2.0) - min(score[1], 3.0))

    def _walk(self) -> Genome:
        """One way through the genes, its answers clipped to what the budget allows."""
        space = self._problem.space
        leaning = self._leanings[int(self._rng.integers(len(self._leanings)))]
        low, high = np.log(_BUDGETS)
        budget = float(np.exp(self._rng.uniform(low, high)))
        strongest = tuple(size - 1 for size in space.sizes)
        genome, states, actions = list(space.untouched), [], []
        before = 0.0
        for k, size in enumerate(space.sizes):
            left = self._left(genome, leaning)
            place = k / len(genome)
            known = [place, left, budget, leaning[1], before]
            state = np.concatenate([self._facts[k], known])
            answer = self._answer(state)
            level = round(answer * (size - 1))
            # Where all that follows at its strongest would not do, this gene has to give more.
            while level < size - 1:
                reached = [*genome[:k], level, *strongest[k + 1 :]]
                if self._left(reached, leaning) <= budget:
                    break
                level += 1
            # Nor more than is needed.
            if left <= budget:
                level = 0
            genome[k] = level
            before = level / max(size - 1, 1)
            states.append(state)
            actions.append(before)
        found = space.clipped(genome)
        walk = _Walk(np.array(states), np.array(actions))
        self._walks.setdefault(found, []).append(walk)
        return found

    def _left(self, genome: Sequence[int], leaning: tuple[float, float]) -> float:
        told = self._problem.forecaster.of(genome)
        return leaning[0] * told.size + leaning[1] * told.latency

    def _answer(self, state: Floats) -> float:
        if self._count < _WARM_UP:
            return float(self._rng.uniform())
        torch = self._torch
        with torch.no_grad():
            mean = float(self._actor(torch.tensor(state, dtype=torch.float32)))
        return float(np.clip(self._rng.normal(mean, self._noise), 0, 1))

    def _remember(self, walk: _Walk, reward: float) -> None:
        self._mean = reward if not self._count else 0.95 * self._mean + 0.05 * reward
        last = len(walk.states) - 1
        for k, (state, action) in enumerate(zip(walk.states, walk.actions, strict=True)):
            following = walk.states[min(k + 1, last)]
            # All steps of a walk share its reward, as in AMC.
            self._replay.append((state, float(action), reward - self._mean, following, k == last))

    def _learn(self) -> None:
        torch = self._torch
        picked = self._rng.integers(len(self._replay), size=min(_BATCH, len(self._replay)))
        rows = [self._replay[int(k)] for k in picked]
        state, following = (
            torch.tensor(np.array([row[n] for row in rows]), dtype=torch.float32) for n in (0, 3)
        )
        action, reward = (
            torch.tensor([[row[n]] for row in rows], dtype=torch.float32) for n in (1, 2)
        )
        goes_on = torch.tensor([[0.0 if row[4] else 1.0] for row in rows])
        with torch.no_grad():
            answer = self._targets[0](following)
            later = self._targets[1](torch.cat([following, answer], 1))
            wanted = torch.where(goes_on > 0, _DISCOUNT * later, reward)
        judged = self._critic(torch.cat([state, action], 1))
        self._step(1, torch.square(judged - wanted).mean())
        self._step(0, -self._critic(torch.cat([state, self._actor(state)], 1)).mean())
        with torch.no_grad():
            for target, source in zip(self._targets, (self._actor, self._critic), strict=True):
                for old, new in zip(target.parameters(), source.parameters(), strict=True):
                    old.mul_(1 - _SOFT).add_(_SOFT * new)

    def _step(self, which: int, loss: Any) -> None:
        self._optimizers[which].zero_grad(set_to_none=True)
        loss.backward()
        self._optimizers[which].step()


def _facts(problem: Problem) -> Floats:
    """What is known of each gene: ``(genes, facts)``, all about 0 to 1."""
    forecaster, space = problem.forecaster, problem.space
    stages = list(dict.fromkeys(gene.stage for gene in space.genes))
    rows = []
    for k, gene in enumerate(space.genes):
        size, time = forecaster.saving(k, len(gene.options))
        error = -np.log10(max(forecaster.error(k, len(gene.options)), 1e-9)) / 9
        mild = -np.log10(max(forecaster.error(k, 1), 1e-9)) / 9
        kind = [float(gene.stage == stage) for stage in stages]
        rows.append([size, time, error, mild, len(gene.options) / 10, *kind])
    return np.array(rows, np.float64)


def _network(torch: Any, width: int, generator: Any, squashed: bool) -> Any:
    """Two hidden layers, drawn by ``generator`` alone."""
    nn = torch.nn
    layers = [nn.Linear(width, _HIDDEN), nn.ReLU(), nn.Linear(_HIDDEN, _HIDDEN), nn.ReLU()]
    layers.append(nn.Linear(_HIDDEN, 1))
    if squashed:
        layers.append(nn.Sigmoid())
    network = nn.Sequential(*layers)
    with torch.no_grad():
        for parameter in network.parameters():
            bound = 1 / max(parameter.shape[-1], 1) ** 0.5
            parameter.uniform_(-bound, bound, generator=generator)
    return network
