"""A simulation: how long many models take on many machines, what a death costs, what travels.

    python benchmarks/fleet.py --models 10000 --machines 100 --seconds 60

Every machine has a number of workers with one thread each; a call is given to the next one that is
free, as joblib's backends do, the longest first, as ``optimize`` has it. Seconds of a model are
log-normal about the median given; machines die at random and lose the calls that they are at, which
are run again.
"""

import heapq
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import typer

_SPREAD = 1.0
"""Of the logarithm of a model's seconds: some take ten times as long as others."""


@dataclass(frozen=True, slots=True)
class Fleet:
    """Machines, the workers of each, and hours between two deaths of one."""

    machines: int
    workers: int
    hours: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """Hours until all is done, the share of workers' time in use, calls that were run again."""

    hours: float
    busy: float
    again: int


def simulate(
    seconds: "np.ndarray[tuple[int], np.dtype[np.float64]]", fleet: Fleet, seed: int
) -> Outcome:
    """The calls of so many ``seconds``, in their order, on a fleet."""
    rng = np.random.default_rng(seed)
    free = [(0.0, machine, k) for machine in range(fleet.machines) for k in range(fleet.workers)]
    heapq.heapify(free)
    deaths = rng.exponential(3600 * fleet.hours, fleet.machines)
    waiting, again, end = list(seconds[::-1]), 0, 0.0
    while waiting:
        start, machine, k = heapq.heappop(free)
        while start > deaths[machine]:
            deaths[machine] += rng.exponential(3600 * fleet.hours)
        call = waiting.pop()
        if start + call > deaths[machine]:
            # It dies in the middle; what it was at goes to the next one that is free.
            waiting.append(call)
            again += 1
            heapq.heappush(free, (float(deaths[machine]) + 60.0, machine, k))
            continue
        end = max(end, start + call)
        heapq.heappush(free, (start + call, machine, k))
    workers = fleet.machines * fleet.workers
    return Outcome(end / 3600, float(seconds.sum()) / (end * workers), again)


def main(
    models: Annotated[int, typer.Option(min=1)] = 10_000,
    machines: Annotated[int, typer.Option(min=1)] = 100,
    workers: Annotated[int, typer.Option(min=1, help="Of each machine.")] = 8,
    seconds: Annotated[float, typer.Option(help="Median of a model.")] = 60.0,
    megabytes: Annotated[float, typer.Option(help="Of a model with its samples.")] = 50.0,
    hours: Annotated[float, typer.Option(help="Between two deaths of a machine.")] = 24.0,
    seed: int = 0,
) -> None:
    """Print a table of outcomes: the fleet as it is, half of it, one machine, and more deaths."""
    draws = seconds * np.exp(_SPREAD * np.random.default_rng(seed).standard_normal(models))
    draws = np.sort(draws)[::-1]
    typer.echo("| machines | hours between deaths | hours | workers busy | run again | MB/s read |")
    typer.echo("|---|---|---|---|---|---|")
    for count, between in (
        (machines, hours),
        (max(1, machines // 2), hours),
        (1, hours),
        (machines, 1.0),
    ):
        found = simulate(draws, Fleet(count, workers, between), seed)
        rate = models * megabytes / (found.hours * 3600)
        typer.echo(
            f"| {count} | {between:g} | {found.hours:.2f} | {found.busy:.0%} | {found.again} "
            f"| {rate:.0f} |"
        )


if __name__ == "__main__":
    typer.run(main)
