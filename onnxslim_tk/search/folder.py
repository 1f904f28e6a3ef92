"""The run folder: the front with its models and plans, whole after every batch."""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Final

from onnxslim_tk.errors import ModelError, RecipeError
from onnxslim_tk.graph.stored import Stored
from onnxslim_tk.pipeline.files import write_file
from onnxslim_tk.plan.plan import Plan, write_plan
from onnxslim_tk.plan.proposal import Proposal
from onnxslim_tk.report.as_json import json_text
from onnxslim_tk.search.cargo import Cargo
from onnxslim_tk.search.evaluate import Evaluation, Found
from onnxslim_tk.search.goal import Figures, Goal, front, hypervolume
from onnxslim_tk.search.goal import Point as Values
from onnxslim_tk.search.space import Extent, Gene, Space
from onnxslim_tk.version import VERSION
from onnxslim_tk.writing import replacing

_FORMAT: Final = 1
_FRONT: Final = "front.json"
_SURVEY: Final = "space.json"
_PAGE: Final = "front.html"
_OURS: Final = re.compile(r"plan-[0-9a-f]{12}\.(onnx|plan\.json|report\.json)")


@dataclass(frozen=True, slots=True)
class Point:
    """A result on the front: its name, its values by the goal, and what judging found."""

    name: str
    evaluation: Evaluation
    point: Values
    violation: float
    judged: dict[str, Any] | None = None

    @property
    def model(self) -> str:
        """The file name of the model."""
        return f"{self.name}.onnx"

    @property
    def plan(self) -> str:
        """The file name of the plan."""
        return f"{self.name}.plan.json"


class Folder:
    """What a search leaves in its folder; ``last`` is the front as it was last written."""

    def __init__(self, path: Path, cargo: Cargo, goal: Goal) -> None:
        self.path, self._cargo, self.goal = path, cargo, goal
        self.last: list[Point] = []
        self.judged: dict[str, dict[str, Any]] = {}
        for name, report in self._old_reports():
            self.judged[name] = report

    def points(self, known: Sequence[Evaluation], original: Figures) -> list[Point]:
        """The front: what keeps the limits and no other beats; the nearest where nothing does.

        Of equal ones that of the smallest genome, whoever came first.
        """
        scored = [
            (e, self.goal.point(e.figures, original), self.goal.violation(e.figures, original))
            for e in sorted(known, key=lambda e: e.genome)
            if e.figures is not None
        ]
        held = [row for row in scored if row[2] == 0]
        if not held:
            held = sorted(scored, key=lambda row: (row[2], row[1]))[:1]
        kept = [held[k] for k in front([values for _, values, _ in held])]
        return [
            Point(name := _name(e), e, values, violation, _shown(self.judged.get(name)))
            for e, values, violation in kept
        ]

    def spread(self, points: Sequence[Point], count: int) -> list[Point]:
        """At most ``count`` of the points, those that together hold most of the volume."""
        columns = zip(*(p.point for p in points), strict=True)
        reference = tuple(max(1.0, *values) + 1e-9 for values in columns)
        chosen: list[Point] = []
        while len(chosen) < min(count, len(points)):
            left = [p for p in points if p not in chosen]
            held = [p.point for p in chosen]
            chosen.append(max(left, key=lambda p: hypervolume([*held, p.point], reference)))
        return sorted(chosen, key=lambda p: p.point)

    def best(self, points: Sequence[Point]) -> Point | None:
        """The point that holds most of the volume alone: the one to take if only one is wanted."""
        found = self.spread(points, 1)
        return found[0] if found else None

    def keep(self, found: Found, original: Figures) -> None:
        """Write the model and the plan of a result that was on the front when it was begun."""
        if found.data is not None and found.plan is not None:
            name = _name(found.evaluation)
            write_file(found.data, self.path / f"{name}.onnx")
            write_plan(found.plan, self.path / f"{name}.plan.json")

    def judge(self, point: Point, report: dict[str, Any], data: Stored, plan: Plan) -> None:
        """Keep the report on a chosen result, its model and its plan."""
        write_file(data, self.path / point.model)
        write_plan(plan, self.path / point.plan)
        self._write(f"{point.name}.report.json", json_text(report))
        self.judged[point.name] = report

    def write(self, known: Sequence[Evaluation], original: Figures, spent: int) -> list[Point]:
        """Write the front as it is now, and remove the models that are no longer on it."""
        points = self.points(known, original)
        best = self.best(points)
        data = {
            "format": _FORMAT,
            "version": VERSION,
            "source": self._cargo.name,
            "source_sha256": self._cargo.source_sha256,
            "seed": self._cargo.options.seed,
            "objectives": list(self.goal.objectives),
            "limits": dict(self.goal.limits),
            "evaluations": spent,
            "known": len(known),
            "original": asdict(original),
            "best": None if best is None else best.name,
            "points": [self._data(point) for point in points],
        }
        self._write(_FRONT, json_text(data))
        names = {point.name for point in points}
        for path in self.path.glob("plan-*"):
            # A plan of the user's own may be called so as well.
            if _OURS.fullmatch(path.name) and path.name.split(".")[0] not in names:
                path.unlink(missing_ok=True)
        self.last = points
        return points

    def write_page(self, text: str) -> None:
        """Write the page."""
        self._write(_PAGE, text)

    def survey(self) -> tuple[Space, Figures] | None:
        """The space and the original's figures as an earlier run of the same search left them.

        Raises RecipeError where the folder holds another search.
        """
        try:
            data = json.loads((self.path / _SURVEY).read_text(encoding="utf-8"))
            same = data["key"] == self._cargo.key and data["format"] == _FORMAT
            found = _space(data["space"]), Figures(**data["original"])
        except (OSError, ValueError, KeyError, TypeError):
            return None
        if not same:
            raise RecipeError(
                f"search: {self.path} holds a search of another model, other samples or settings; "
                "take another folder, or remove it"
            )
        return found

    def keep_survey(self, space: Space, original: Figures) -> None:
        """Leave the space for later runs."""
        data = {
            "format": _FORMAT,
            "key": self._cargo.key,
            "original": asdict(original),
            "space": space.data(),
        }
        # Floats as they are: a resumed search must be the same search.
        self._write(_SURVEY, json.dumps(data))

    def _data(self, point: Point) -> dict[str, Any]:
        assert point.evaluation.figures is not None
        made = (self.path / point.model).exists()
        return {
            "name": point.name,
            "model": point.model if made else None,
            "plan": point.plan if made else None,
            "holds": point.violation == 0,
            "values": dict(zip(self.goal.objectives, point.point, strict=True)),
            "figures": asdict(point.evaluation.figures),
            "sha256": point.evaluation.sha256,
            "levels": list(point.evaluation.genome),
            "judged": point.judged,
        }

    def _old_reports(self) -> list[tuple[str, dict[str, Any]]]:
        found = []
        for path in sorted(self.path.glob("plan-*.report.json")):
            try:
                report = json.loads(path.read_text(encoding="utf-8"))
            except (OSError, ValueError):
                continue
            if (
                isinstance(report, dict)
                and report.get("source_sha256") == self._cargo.source_sha256
            ):
                found.append((path.name.split(".")[0], report))
        return found

    def _write(self, name: str, text: str) -> None:
        place = self.path / name
        try:
            with replacing(place) as file:
                file.write(text.encode())
        except OSError as error:
            raise ModelError(f"search: {place} cannot be written: {error.strerror}") from error


def _name(evaluation: Evaluation) -> str:
    return f"plan-{evaluation.sha256[:12]}"


def _shown(report: dict[str, Any] | None) -> dict[str, Any] | None:
    """What the front says of a report."""
    if report is None:
        return None
    validation = report["validation"]
    latency, faithful = validation["latency"], validation["faithfulness"] or {}
    return {
        "holds": report["holds"],
        "latency_ratio": None if latency is None else latency["ratio"],
        "load_ratio": None if latency is None else latency["load_ratio"],
        "drop": (faithful.get("drop") or {}).get("drop"),
        "samples": faithful.get("samples"),
    }


def _space(data: dict[str, Any]) -> Space:
    names = {field.name for field in fields(Proposal)}
    genes = [
        Gene(
            gene["stage"],
            tuple(gene["targets"]),
            tuple(
                Proposal(**{n: option[n] for n in names} | {"targets": tuple(option["targets"])})
                for option in gene["options"]
            ),
        )
        for gene in data["genes"]
    ]
    return Space(tuple(genes), {n: Extent(**e) for n, e in data["extents"].items()})
