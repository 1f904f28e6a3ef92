"""The plan: chosen rows by stage, written as JSON for people to read, edit and carry out."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from onnxslim_tk.errors import RecipeError
from onnxslim_tk.plan.proposal import Proposal, Refusal
from onnxslim_tk.plan.reading import check_extent, read_text
from onnxslim_tk.plan.recipe import Methods, Recipe, recipe_data, recipe_from_data
from onnxslim_tk.writing import replacing

_FORMAT: Final = 1
_MOST_ERROR: Final = 1e9
_MOST_TEXT: Final = 1 << 28
_MOST_NUMBER: Final = 1e300


@dataclass(frozen=True, slots=True)
class StagePlan:
    """What one stage does: the rows chosen and why, and what methods left alone and why."""

    stage: str
    rows: tuple[Proposal, ...]
    refusals: tuple[Refusal, ...] = ()


@dataclass(frozen=True, slots=True)
class Plan:
    """Rows by stage for one model, the recipe whose settings they keep, and the seed."""

    source_sha256: str
    recipe: Recipe
    seed: int
    stages: tuple[StagePlan, ...]


def plan_data(plan: Plan) -> dict[str, Any]:
    """The plan as plain JSON data."""
    return {
        "format": _FORMAT,
        "source_sha256": plan.source_sha256,
        "seed": plan.seed,
        "recipe": recipe_data(plan.recipe),
        "stages": [
            {
                "stage": stage.stage,
                # JSON knows no infinity.
                "rows": [
                    asdict(row) | {"error": min(row.error, _MOST_ERROR)} for row in stage.rows
                ],
                "refusals": [asdict(refusal) for refusal in stage.refusals],
            }
            for stage in plan.stages
        ],
    }


def write_plan(plan: Plan, path: Path) -> None:
    """Write the plan; raises RecipeError where the file can't be written."""
    try:
        with replacing(path) as file:
            file.write((json.dumps(plan_data(plan), indent=1) + "\n").encode())
    except OSError as error:
        raise RecipeError(f"plan: {path} cannot be written: {error.strerror}") from error


def read_plan(path: Path, methods: Methods) -> Plan:
    """A plan from a file, every part of it checked; raises RecipeError."""
    try:
        data = json.loads(read_text(path, _MOST_TEXT))
    except (OSError, ValueError, RecursionError) as error:
        raise RecipeError(f"plan: {path} is not a readable JSON file: {error}") from error
    who = f"plan {path.name}"
    check_extent(data, who, _MOST_TEXT)
    if not isinstance(data, dict) or data.get("format") != _FORMAT:
        raise RecipeError(f"{who}: must be a plan of format {_FORMAT}")
    recipe = recipe_from_data(data.get("recipe"), who, methods)
    stages = data.get("stages")
    if not isinstance(stages, list):
        raise RecipeError(f"{who}: 'stages' must be a list")
    known = [stage.name for stage in recipe.stages]
    found = [_stage(stage, who, known, methods) for stage in stages]
    if [stage.stage for stage in found] != known:
        raise RecipeError(f"{who}: stages must be those of its recipe: {', '.join(known)}")
    seed, sha = data.get("seed"), data.get("source_sha256")
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        raise RecipeError(f"{who}: 'seed' must be a whole number from 0 up, got {seed!r}")
    if not isinstance(sha, str):
        raise RecipeError(f"{who}: 'source_sha256' must be text, got {sha!r}")
    return Plan(sha, recipe, seed, tuple(found))


def _stage(data: Any, who: str, known: Sequence[str], methods: Methods) -> StagePlan:
    if not isinstance(data, dict) or data.get("stage") not in known:
        raise RecipeError(f"{who}: a stage must be a mapping that names one of {', '.join(known)}")
    rows = data.get("rows")
    if not isinstance(rows, list):
        raise RecipeError(f"{who}: the rows of stage {data['stage']!r} must be a list")
    found = [_row(row, who, methods) for row in rows]
    seen: set[tuple[str, tuple[str, ...]]] = set()
    for row in found:
        if (row.method, row.targets) in seen:
            raise RecipeError(f"{who}: two rows of {row.method} for {row.targets[0]!r}")
        seen.add((row.method, row.targets))
    return StagePlan(data["stage"], tuple(found))


def _row(data: Any, who: str, methods: Methods) -> Proposal:
    if not isinstance(data, dict):
        raise RecipeError(f"{who}: a row must be a mapping, got {type(data).__name__}")
    targets, method, setting = (data.get(key) for key in ("targets", "method", "setting"))
    texts = isinstance(targets, list) and all(isinstance(target, str) for target in targets)
    if not texts or not targets:
        raise RecipeError(f"{who}: a row's 'targets' must be a list of layer ids, got {targets!r}")
    if not isinstance(method, str) or method not in methods:
        raise RecipeError(f"{who}: no method {method!r}; known: {', '.join(sorted(methods))}")
    finite = not isinstance(setting, int | float) or abs(setting) < _MOST_NUMBER
    if not isinstance(setting, (int, float, str)) or not finite:
        raise RecipeError(f"{who}: the setting of {method} on {targets[0]!r} is {setting!r}")
    details = data.get("details", {})
    if not isinstance(details, Mapping):
        raise RecipeError(f"{who}: the details of {method} on {targets[0]!r} must be a mapping")
    return Proposal(
        targets=tuple(targets),
        method=method,
        setting=setting,
        details=dict(details),
        bytes_saved=int(_number(data, "bytes_saved", who)),
        macs_saved=int(_number(data, "macs_saved", who)),
        cost_saved=float(_number(data, "cost_saved", who)),
        error=float(_number(data, "error", who)),
        measured=bool(data.get("measured", False)),
        why=str(data.get("why", "")),
    )


def _number(data: Mapping[str, Any], key: str, who: str) -> float:
    value: Any = data.get(key, 0)
    # Whole numbers of JSON may be larger than any float.
    numeric = isinstance(value, int | float) and not isinstance(value, bool)
    if not numeric or not abs(value) < _MOST_NUMBER:
        raise RecipeError(f"{who}: {key} must be a finite number, got {value!r:.60}")
    return float(value)
