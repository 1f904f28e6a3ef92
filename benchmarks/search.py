"""Strategies beside each other: the hypervolume that each reaches with as many evaluations.

    python benchmarks/search.py --data models --models digits-mnist --strategies random,knapsack

Of size, latency by the target's table and error of the outputs on the samples for choosing, which
are of the calibration split: no search sees the test split. What was run is kept (``--out``), so
that a run that was stopped goes on. ``--pace`` measures one worker beside two instead.
"""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean, pstdev
from typing import Annotated, Any

import typer

from benchmarks.catalogue import CATALOGUE, ready
from benchmarks.rows import commit_of_code
from onnxslim_tk.measure.runtime import Session
from onnxslim_tk.measure.samples import Samples
from onnxslim_tk.passes import PASSES
from onnxslim_tk.pipeline.cache import Cache
from onnxslim_tk.pipeline.options import Options
from onnxslim_tk.pipeline.run import open_workshop
from onnxslim_tk.pipeline.workers import Place
from onnxslim_tk.plan.recipe import parse_recipe
from onnxslim_tk.search import Cargo, Effort, Goal, pack_up, search
from onnxslim_tk.search.archive import Archive, journal
from onnxslim_tk.search.folder import Folder
from onnxslim_tk.search.goal import hypervolume
from onnxslim_tk.search.space import RECIPE
from onnxslim_tk.search.strategies import STRATEGIES

GOAL = Goal(("size", "latency", "quality"))
REFERENCE = (1.0, 1.0, 0.25)
"""The original's size and time, and 6 dB: the least that outputs of classes may keep."""
WITHOUT_CHANCE = ("knapsack",)


def loaded(model: str, data: Path, samples: int, seed: int, cache: Path | None) -> Cargo:
    """A model of the catalogue with samples of its calibration split."""
    path, task = ready(CATALOGUE[model], data)
    feeds = task.calibration(Session(path.read_bytes()), samples)
    options = Options(
        calibration=Samples(feeds), seed=seed, cache=None if cache is None else Cache(cache)
    )
    return pack_up(open_workshop(path, parse_recipe(RECIPE, "search", PASSES), options, None))


def volume(cargo: Cargo, folder: Path) -> float:
    """The share of the reference's volume that a finished search holds."""
    made = Folder(folder, cargo, GOAL)
    survey = made.survey()
    assert survey is not None
    space, original = survey
    known = list(Archive(journal(folder), cargo.key, "reader", space).known.values())
    held = [p.point for p in made.points(known, original) if p.violation == 0]
    return hypervolume(held, REFERENCE) / REFERENCE[0] / REFERENCE[1] / REFERENCE[2]


def rows(
    model: str, strategies: list[str], seeds: int, evaluations: int, data: Path, out: Path
) -> Iterator[tuple[str, list[float]]]:
    """The volumes of each strategy over its seeds."""
    commit = commit_of_code()
    for strategy in strategies:
        found = []
        for seed in range(1 if strategy in WITHOUT_CHANCE else seeds):
            place = out / f"{model} {strategy} {seed} {evaluations} {commit}"
            kept = place / "volume.json"
            # The split of the samples stays the same: chance is the strategy's alone.
            cargo = loaded(model, data, 128, 0, out / "cache")
            if not kept.exists():
                effort = Effort(
                    evaluations, strategy=strategy, chosen=1, place=Place(apart=False), seed=seed
                )
                search(cargo, place, GOAL, effort)
                kept.write_text(json.dumps(volume(cargo, place)))
            found.append(float(json.loads(kept.read_text())))
        yield strategy, found


def pace(model: str, evaluations: int, data: Path, out: Path) -> list[tuple[str, float]]:
    """Evaluations a minute with one worker and with two, random plans, nothing kept between."""
    found = []
    for jobs in (1, 2):
        cargo = loaded(model, data, 128, 0, None)
        begun: list[float] = []

        def watch(state: Any, begun: list[float] = begun) -> None:
            if state.step in ("search", "evaluate"):
                begun.append(time.monotonic())

        effort = Effort(evaluations, strategy="random", chosen=1, place=Place(jobs))
        search(cargo, out / f"pace {model} {jobs} {time.time_ns()}", GOAL, effort, watch)
        found.append((f"{jobs} workers", 60 * evaluations / (begun[-1] - begun[0])))
    return found


def main(
    models: str = "digits-mnist,crepe-tiny",
    strategies: str = ",".join(STRATEGIES),
    seeds: int = 3,
    evaluations: int = 60,
    data: Path = Path("models"),
    out: Path = Path("models/results/search"),
    measure_pace: Annotated[bool, typer.Option("--pace")] = False,
) -> None:
    """Print a table for each model."""
    out.mkdir(parents=True, exist_ok=True)
    for model in models.split(","):
        if measure_pace:
            for name, speed in pace(model, evaluations, data, out):
                typer.echo(f"{model}: {name}: {speed:.1f} evaluations a minute")
            continue
        typer.echo(f"{model}, {evaluations} evaluations\n\n| strategy | volume | spread | seeds |")
        typer.echo("|---|---|---|---|")
        for name, found in rows(model, strategies.split(","), seeds, evaluations, data, out):
            spread = pstdev(found)
            typer.echo(f"| {name} | {fmean(found):.4f} | {spread:.4f} | {len(found)} |")


if __name__ == "__main__":
    typer.run(main)
