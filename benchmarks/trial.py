"""One trial: a model is compressed by a recipe and measured by its task."""

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import lru_cache
from itertools import groupby
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import onnx

from benchmarks.catalogue import CATALOGUE, Entry, ready
from benchmarks.comparing import Comparison
from benchmarks.rows import Row, Status, Store, commit_of_code, key_of
from benchmarks.sources import SourceError
from onnxslim_tk.errors import OnnxSlimError
from onnxslim_tk.measure.runtime import Session, runtime_version
from onnxslim_tk.measure.samples import Samples
from onnxslim_tk.pipeline import Options, optimize
from onnxslim_tk.pipeline.attempt import Workshop
from onnxslim_tk.pipeline.files import parse, read_model, write_file
from onnxslim_tk.pipeline.judge import judge
from onnxslim_tk.pipeline.stepping import Asking
from onnxslim_tk.plan.recipe import Recipe, recipe_data
from onnxslim_tk.report.outcome import Report
from onnxslim_tk.version import VERSION


@dataclass(frozen=True, slots=True)
class Trial:
    """What is asked for.

    ``samples`` and ``test_items`` None take the task's numbers; ``as_asked`` carries the recipe
    out as it stands, whatever the budget says.
    """

    model: str
    recipe: Recipe
    data: Path
    commit: str
    settings: tuple[str, ...] = ()
    samples: int | None = None
    test_items: int | None = None
    seed: int = 0
    as_asked: bool = False

    @property
    def key(self) -> str:
        """The name of the trial's row."""
        asked = {
            "recipe": recipe_data(self.recipe),
            "samples": self.samples,
            "test_items": self.test_items,
            "seed": self.seed,
            "as_asked": self.as_asked,
        }
        return key_of(self.model, self.recipe.name, asked, self.commit)

    def row(self, status: Status, **found: Any) -> Row:
        """A row of this trial."""
        return Row(
            key=self.key,
            model=self.model,
            recipe=self.recipe.name,
            settings=self.settings,
            package=VERSION,
            runtime=runtime_version(),
            commit=self.commit,
            date=datetime.now(UTC).isoformat(timespec="seconds"),
            status=status,
            **found,
        )


def trials(
    entries: Sequence[Entry], recipes: Sequence[Recipe], data: Path, **settings: Any
) -> list[Trial]:
    """Every model under every recipe, as the code is now."""
    commit = commit_of_code()
    return [
        Trial(entry.name, recipe, data, commit, **settings)
        for entry in entries
        for recipe in recipes
    ]


def carry_out(wanted: Sequence[Trial], store: Store, retry: bool) -> Iterator[Row]:
    """The rows of all trials, from the store where they are there already.

    Each model has a process of its own, so that a crash is a row like any other failure.
    ``retry`` repeats rows that aren't done.
    """
    for _, group in groupby(wanted, key=lambda trial: trial.model):
        pool: ProcessPoolExecutor | None = None
        for trial in group:
            known = store.read(trial.key)
            if known is not None and (known.status == "done" or not retry):
                yield known
                continue
            pool = pool or ProcessPoolExecutor(1, mp_context=get_context("spawn"))
            future = pool.submit(measure, trial)
            error = future.exception()
            if error is None:
                row = future.result()
            else:
                first = (str(error).splitlines() or [""])[0]
                row = trial.row("failed", cause=f"{type(error).__name__}: {first}")
                pool.shutdown()
                pool = None
            store.write(row)
            yield row
        if pool is not None:
            pool.shutdown()


def measure(trial: Trial) -> Row:
    """Compress and measure; what goes wrong on purpose is in the row."""
    try:
        path, task = ready(CATALOGUE[trial.model], trial.data)
        count = trial.samples or task.calibration_items
        feeds = task.calibration(Session(path), count)
        samples = Samples(feeds, source=task.name)
        with TemporaryDirectory(prefix="onnxslim-") as folder:
            result = Path(folder, "result.onnx")
            report = _compress(trial, path, result, samples)
            figures = _comparison(trial.model, trial.data, trial.test_items).against(result)
            valid = _complaint(result) in ("", _complaint(path))
    except SourceError as error:
        return trial.row("not evaluated", cause=str(error))
    except OnnxSlimError as error:
        return trial.row("failed", cause=str(error))
    validation = report.validation
    before, after, latency = validation.original, validation.result, validation.latency
    return trial.row(
        "done",
        samples=len(feeds),
        file_bytes=(before.file_bytes, after.file_bytes),
        gzip_bytes=(before.gzip_bytes, after.gzip_bytes),
        macs=(before.macs, after.macs),
        latency_ms=None if latency is None else (latency.original_ms, latency.result_ms),
        load_ratio=None if latency is None else latency.load_ratio,
        figures=asdict(figures),
        valid=valid,
        holds=report.holds,
        steps_back=report.steps_back,
        only_tidied=report.only_tidied,
        warnings=report.warnings,
        seconds=report.seconds,
    )


def _compress(trial: Trial, source: Path, result: Path, samples: Samples) -> Report:
    options = Options(calibration=samples, seed=trial.seed)
    if not trial.as_asked:
        return optimize(source, result, trial.recipe, options)
    started = time.process_time()
    data = read_model(source)
    shop = Workshop(
        source,
        data,
        parse(data),
        Session(data).inputs,
        trial.recipe,
        samples,
        options,
    )
    attempt = shop.attempt(Asking(), 0)
    write_file(attempt.data, result)
    return judge(shop, attempt, started)


@lru_cache(maxsize=1)
def _comparison(model: str, data: Path, items: int | None) -> Comparison:
    path, task = ready(CATALOGUE[model], data)
    return Comparison(task, path, items)


def _complaint(path: Path) -> str:
    """What onnx's full check has against a file; some originals don't pass it themselves."""
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        return (str(error).splitlines() or ["invalid"])[0]
    return ""
