"""What distillation gives back of what structure took: figures on test splits, as JSON lines.

    python -m benchmarks.recovery --models ppocr-v4-rec-lines --recipe sparse.yaml --samples 1000

The model goes through ``--recipe`` without a budget, then learns from the original on samples of
the calibration split, without labels. What is chosen on the way is chosen on that split.
"""

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.catalogue import Entry, chosen, ready
from benchmarks.tasks.evaluation import Evaluation, running
from onnxslim_tk import Budget, Options, Samples, optimize
from onnxslim_tk.measure.runtime import Session
from onnxslim_tk.passes import PASSES
from onnxslim_tk.pipeline.teaching import distill
from onnxslim_tk.plan.recipe import read_recipe
from onnxslim_tk.plan.training import Training, read_training, with_settings

_ANYTHING = Budget(min_sqnr_db=-1000.0, min_agreement=0.0, min_cosine=0.0)


def main() -> None:
    """Run the models asked for and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("models"))
    parser.add_argument("--out", type=Path, default=Path("models/recovery"))
    parser.add_argument("--models", default="ppocr-v4-rec-lines")
    parser.add_argument("--recipe", required=True, help="what is done to the model first")
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--test-n", type=int)
    parser.add_argument("--training", type=Path, help="a YAML file of settings")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    arguments = parser.parse_args()
    training = Training() if arguments.training is None else read_training(arguments.training)
    for text in arguments.set:
        name, _, value = text.partition("=")
        training = with_settings(training, {name: json.loads(value)})
    arguments.out.mkdir(parents=True, exist_ok=True)
    for entry in chosen(arguments.models):
        print(json.dumps(_figures(entry, arguments, training)), flush=True)


def _figures(entry: Entry, arguments: argparse.Namespace, training: Training) -> dict[str, object]:
    original, task = ready(entry, arguments.data)
    name = f"{entry.name}-{Path(arguments.recipe).stem}"
    cut, result = (arguments.out / f"{name}{end}.onnx" for end in ("", "-distilled"))
    feeds = task.calibration(Session(original), arguments.samples)
    seconds = {"cut": 0.0, "distill": 0.0}
    if not cut.exists():
        begun = time.process_time()
        some = Samples(feeds[: task.calibration_items])
        recipe = replace(read_recipe(arguments.recipe, PASSES), budget=_ANYTHING)
        optimize(original, cut, recipe, Options(some))
        seconds["cut"] = time.process_time() - begun
    begun = time.process_time()
    report = distill(original, cut, result, Options(Samples(feeds)), training)
    seconds["distill"] = time.process_time() - begun
    assert report is not None
    assert report.training is not None
    count = arguments.test_n or task.test_items
    sizes = report.validation
    return {
        "model": name,
        "metric": task.metric,
        **{key: round(value) for key, value in seconds.items()},
        "original": _score(task, original, count),
        "cut": _score(task, cut, count),
        "distilled": _score(task, result, count),
        "macs": [sizes.original.macs, sizes.result.macs],
        "bytes": [sizes.original.file_bytes, sizes.result.file_bytes],
        "looks": [(look.step, round(look.loss, 5)) for look in report.training.looks],
        "best": report.training.best,
        "ended": report.training.ended,
    }


def _score(task: Evaluation, path: Path, count: int) -> float:
    items = task.items(count, "test")
    run = running(Session(path))
    answers = [task.answer(run, feed) for feed in items.feeds]
    return round(task.scorer(answers, items.truths)(np.arange(len(items))), 4)


if __name__ == "__main__":
    main()
