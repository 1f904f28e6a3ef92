"""``optimize``: compress, validate, write."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from onnxslim_tk import pipeline
from onnxslim_tk.measure.kinds import OutputKind
from onnxslim_tk.measure.validate import Progress
from onnxslim_tk.pipeline.workers import Place
from onnxslim_tk.plan.recipe import Recipe
from onnxslim_tk.report.outcome import Report

from .effort import Effort
from .many import optimize_all
from .options import Choices, InPlace, Showing, check_targets, place_of_result
from .outcome import deliver
from .progress import Steps
from .supervise import Isolation, supervise

_MANY = "Many models"


def optimize(
    models: Annotated[
        list[Path],
        typer.Argument(
            metavar="IN OUT",
            help="The model, and where the result goes; with --out-dir any number of models.",
            show_default=False,
        ),
    ],
    choices: Choices,
    effort: Effort,
    isolation: Isolation,
    showing: Showing,
    in_place: InPlace = False,
    out_dir: Annotated[
        Path | None,
        typer.Option(
            rich_help_panel=_MANY,
            metavar="DIR",
            help="Put the results of all models there, with a manifest; --jobs are processes "
            "then. Samples for a model may lie in PATH/NAME.npz of --calibration PATH.",
        ),
    ] = None,
    cluster: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=_MANY,
            metavar="dask://HOST:PORT|ray://HOST:PORT",
            help="Hand the models to the workers of this cluster, which must see the same files.",
        ),
    ] = None,
) -> None:
    """Compress the model IN and write it to OUT, if it keeps the budget.

    Where nothing compressed does, OUT is the tidied model. Exit code 3 says that not even that
    keeps the budget. With --out-dir, many models at once: what one comes to concerns no other, and
    the same call goes on where an earlier one was ended.
    """
    effort.check()
    if out_dir is not None:
        if in_place or showing.report is not None or showing.json:
            raise typer.BadParameter(
                "not with --in-place, --report or --json: the folder has it all",
                param_hint="--out-dir",
            )
        limits = isolation.limits()
        place = Place(effort.jobs, cluster, isolation.isolate, limits.seconds, limits.memory)
        call = partial(_optimize_one, replace(effort, jobs=1))
        optimize_all(models, out_dir, choices, place, showing.quiet, call)
        return
    if cluster is not None:
        raise typer.BadParameter(
            "needs --out-dir, for one model is one job", param_hint="--cluster"
        )
    if len(models) > 2:
        raise typer.BadParameter(
            f"one model and one result are expected, got {len(models)} files; many models need "
            "--out-dir",
            param_hint="IN OUT",
        )
    source = models[0]
    target = place_of_result(source, models[1] if len(models) > 1 else None, in_place)
    check_targets(source, {"OUT": target, "--report": showing.report}, in_place)
    one = partial(_optimize, effort, source, target, choices.chosen(), choices, in_place)
    with Steps(showing.silent) as steps:
        report, kinds = supervise(one, source, isolation, steps, target)
    deliver(report, showing, kinds)


def _optimize_one(
    effort: Effort, source: Path, target: Path, choices: Choices, progress: Progress
) -> tuple[Report, Mapping[str, OutputKind]]:
    return _optimize(effort, source, target, choices.chosen(), choices, False, progress)


def _optimize(
    effort: Effort,
    source: Path,
    target: Path,
    recipe: Recipe,
    choices: Choices,
    in_place: bool,
    progress: Progress,
) -> tuple[Report, Mapping[str, OutputKind]]:
    options = effort.spent_on(choices.options(source, choices.seed, progress))
    options = replace(options, in_place=in_place)
    return pipeline.optimize(source, target, recipe, options), options.kinds
