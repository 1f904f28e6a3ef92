"""Compares ways to train on digits of MNIST: mean and spread over seeds.

    python benchmarks/training.py --experiments teacher,bits --seeds 3
    python benchmarks/training.py --table

Every trial is kept in ``--out`` as it ends, so that a run that was stopped goes on where it was;
``--table`` prints what is there. Nets and digits are small, so that all of it takes about an hour
of CPU time.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any, Final

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch

from benchmarks.lessons import EXPERIMENTS
from benchmarks.rows import commit_of_code
from benchmarks.school import School
from benchmarks.tables import markdown

MODELS: Final = Path(__file__).resolve().parents[1] / "models"


def main() -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--experiments", default=",".join(EXPERIMENTS), help="joined by commas")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds (3)")
    parser.add_argument("--data", type=Path, default=MODELS, help="folder for the digits (models)")
    parser.add_argument("--out", type=Path, help="folder for results (DATA/results/training)")
    parser.add_argument("--table", action="store_true", help="print the table of what is there")
    asked = parser.parse_args()
    folder = asked.out or asked.data / "results" / "training"
    if not asked.table:
        torch.set_num_threads(1)
        for seed in range(asked.seeds):
            for name in asked.experiments.split(","):
                run(School(asked.data, folder, seed), name, folder)
    print(table(folder), end="")
    return 0


def run(school: School, experiment: str, folder: Path) -> None:
    """All trials of an experiment that aren't there yet, with the nets of one seed."""
    commit = commit_of_code()
    for variant, trial in EXPERIMENTS[experiment].items():
        name = f"{experiment}--{variant}--{school.seed}".replace(" ", "_").replace(",", "")
        path = folder / f"{name}--{commit}.json"
        if path.exists():
            continue
        started = time.process_time()
        figures = trial(school)
        row = {
            "experiment": experiment,
            "variant": variant,
            "seed": school.seed,
            "commit": commit,
            "torch": torch.__version__,
            "figures": figures,
            "seconds": round(time.process_time() - started, 1),
        }
        part = path.with_suffix(".part")
        part.write_text(json.dumps(row, indent=1) + "\n", encoding="utf-8")
        part.replace(path)
        print(experiment, variant, school.seed, figures, file=sys.stderr, flush=True)


def table(folder: Path) -> str:
    """Means and standard deviations of all trials, the newest commit of each."""
    rows: dict[tuple[str, str, int], dict[str, Any]] = {}
    for path in sorted(folder.glob("*.json"), key=lambda path: path.stat().st_mtime):
        row = json.loads(path.read_text(encoding="utf-8"))
        rows[row["experiment"], row["variant"], row["seed"]] = row
    lines = []
    for experiment, variants in EXPERIMENTS.items():
        for variant in variants:
            found = [row for key, row in rows.items() if key[:2] == (experiment, variant)]
            if found:
                lines.append([experiment, variant, *_cells(found)])
    header = ["experiment", "way", "figures", "seeds", "CPU s", "commit"]
    return markdown(header, lines)


def _cells(found: list[dict[str, Any]]) -> list[str]:
    figures = []
    for name in found[0]["figures"]:
        values = [row["figures"][name] for row in found]
        # One seed has no spread to tell of.
        spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
        figures.append(f"{name} {statistics.mean(values):.4f}{spread}")
    seconds = statistics.mean(row["seconds"] for row in found)
    commits = ", ".join(sorted({row["commit"] for row in found}))
    return ["; ".join(figures), str(len(found)), f"{seconds:.0f}", commits]


if __name__ == "__main__":
    sys.exit(main())
