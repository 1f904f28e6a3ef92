"""Recipes: which methods, with which settings, in which stages; read from YAML."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Final

import yaml
from pydantic import TypeAdapter, ValidationError

from onnxslim_tk.errors import RecipeError
from onnxslim_tk.plan.budget import Budget
from onnxslim_tk.plan.proposal import Pass
from onnxslim_tk.plan.reading import read_text, read_yaml
from onnxslim_tk.plan.recovery import RECOVERIES, Distill

Methods = Mapping[str, type[Any]]

PRESETS: Final[Mapping[str, str]] = {
    "light": """
        name: light
        stages:
          clean: [clean]
          fuse: [fuse]
          canonicalize: [canonicalize]
          numbers: [{quantize: {activations: false}}]
        """,
    "balanced": """
        name: balanced
        stages:
          clean: [clean]
          fuse: [fuse]
          canonicalize: [canonicalize]
          equalize: [equalize]
          numbers: [quantize, dynamic_int8]
        """,
    "small": """
        name: small
        stages:
          clean: [clean]
          fuse: [fuse]
          canonicalize: [canonicalize]
          equalize: [equalize]
          share: [{share: {effort: thorough}}]
          numbers: [quantize, dynamic_int8]
        budget: {enough_db: 22}
        """,
}
_STAGE_KEYS: Final = ("passes", "recover")
_KEYS: Final = ("name", "stages", "layers", "exclude", "budget")


@dataclass(frozen=True, slots=True)
class Stage:
    """Methods that propose side by side, and of whose rows one knapsack chooses.

    ``recover`` wins back what the rows lost, None where nothing is to follow them.
    """

    name: str
    passes: tuple[Pass, ...]
    recover: Distill | None = None


@dataclass(frozen=True, slots=True)
class Recipe:
    """Stages in order, settings by layer pattern (the last match wins), patterns left out."""

    name: str
    stages: tuple[Stage, ...]
    layers: tuple[tuple[str, Mapping[str, Any]], ...] = ()
    exclude: tuple[str, ...] = ()
    budget: Budget = field(default_factory=Budget)

    def with_setting(self, assignment: str) -> "Recipe":
        """The recipe with one ``pass.field=value`` set; the value is read as YAML.

        Raises RecipeError for another form and for a pass that no stage holds.
        """
        key, equals, text = assignment.partition("=")
        method, dot, name = key.strip().partition(".")
        if not (equals and dot and method and name):
            raise RecipeError(f"--set: must read pass.field=value, got {assignment!r}")
        value = read_yaml(text, f"--set {key}")
        held = {p.name for stage in self.stages for p in stage.passes}
        if method not in held:
            raise RecipeError(f"--set: the recipe has no pass {method!r}; it has {_list(held)}")
        stages = tuple(
            replace(
                stage,
                passes=tuple(
                    _tuned(p, {name: value}) if p.name == method else p for p in stage.passes
                ),
            )
            for stage in self.stages
        )
        return replace(self, stages=stages)


def read_recipe(source: str, methods: Methods) -> Recipe:
    """The preset of that name, or the recipe in the YAML file at that path.

    Raises RecipeError for what is neither and for any key, type or value that doesn't fit.
    """
    if source in PRESETS:
        return parse_recipe(PRESETS[source], source, methods)
    path = Path(source)
    try:
        text = read_text(path)
    except (OSError, ValueError) as error:
        raise RecipeError(
            f"recipe: {source!r} is neither a preset ({_list(PRESETS)}) nor a readable file"
        ) from error
    return parse_recipe(text, path.name, methods)


def parse_recipe(text: str, origin: str, methods: Methods) -> Recipe:
    """A recipe from YAML text; ``origin`` names it in messages."""
    data = read_yaml(text, origin)
    if not isinstance(data, dict):
        raise RecipeError(f"recipe {origin}: must be a mapping with 'stages', got {_kind(data)}")
    unknown = [key for key in data if key not in _KEYS]
    if unknown:
        raise RecipeError(f"recipe {origin}: unknown key {unknown[0]!r}; known: {_list(_KEYS)}")
    stages = data.get("stages")
    if not isinstance(stages, dict) or not stages:
        raise RecipeError(f"recipe {origin}: 'stages' must map stage names to lists of passes")
    return Recipe(
        name=str(data.get("name") or origin),
        stages=_stages(stages, origin, methods),
        layers=_layers(data.get("layers") or {}, origin, methods),
        exclude=_patterns(data.get("exclude") or [], origin),
        budget=built(Budget, data.get("budget") or {}, f"recipe {origin}: budget"),
    )


def _stages(data: dict[Any, Any], origin: str, methods: Methods) -> tuple[Stage, ...]:
    """The stages that hold a pass; one whose passes are all switched off is none."""
    stages = [_stage(str(name), entries, origin, methods) for name, entries in data.items()]
    held = tuple(stage for stage in stages if stage.passes)
    if not held:
        raise RecipeError(f"recipe {origin}: every pass is switched off")
    return held


def _stage(name: str, entries: Any, origin: str, methods: Methods) -> Stage:
    recover = None
    if isinstance(entries, dict):
        unknown = [key for key in entries if key not in _STAGE_KEYS]
        if unknown or "passes" not in entries:
            raise RecipeError(
                f"recipe {origin}: stage {name!r} must be a list of passes, or a mapping of "
                f"{_list(_STAGE_KEYS)}"
            )
        recover = _recovery(entries.get("recover"), f"recipe {origin}: stage {name!r}")
        entries = entries["passes"]
    if not isinstance(entries, list) or not entries:
        raise RecipeError(f"recipe {origin}: stage {name!r} must be a list of passes")
    passes: list[Any] = []
    for entry in entries:
        settings: Any = True
        if isinstance(entry, dict) and len(entry) == 1:
            entry, settings = next(iter(entry.items()))
        if not isinstance(entry, str) or entry not in methods:
            raise RecipeError(
                f"recipe {origin}: no pass {entry!r} in stage {name!r}; known: {_list(methods)}"
            )
        method = _build_pass(methods[entry], settings, f"recipe {origin}: {entry}")
        if any(type(method) is type(other) for other in passes):
            raise RecipeError(f"recipe {origin}: {entry} stands twice in stage {name!r}")
        if method is not None:
            passes.append(method)
    return Stage(name, tuple(passes), recover)


def _recovery(entry: Any, who: str) -> Distill | None:
    settings: Any = True
    if entry is None or entry is False:
        return None
    if isinstance(entry, dict) and len(entry) == 1:
        entry, settings = next(iter(entry.items()))
    if not isinstance(entry, str) or entry not in RECOVERIES:
        raise RecipeError(f"{who}: there is no recovery {entry!r}; known: {_list(RECOVERIES)}")
    found: Distill | None = _build_pass(RECOVERIES[entry], settings, f"{who}: {entry}")
    return found


def _build_pass(kind: type[Any], settings: Any, who: str) -> Any:
    if settings is False:
        return None
    if settings is True or settings is None:
        return kind()
    values = settings if isinstance(settings, dict) else {kind.main: settings}
    return built(kind, values, who)


def _tuned(method: Any, values: Mapping[str, Any]) -> Any:
    current = {f.name: getattr(method, f.name) for f in fields(method)}
    return built(type(method), current | dict(values), method.name)


def built(kind: type[Any], values: Any, who: str) -> Any:
    """A settings dataclass from plain data, types and field names checked by pydantic."""
    if not isinstance(values, dict):
        raise RecipeError(f"{who}: must be a mapping, got {_kind(values)}")
    known = {f.name for f in fields(kind)} if is_dataclass(kind) else set()
    for key in values:
        if key not in known:
            raise RecipeError(f"{who}: there is no setting {key!r}; it has {_list(known)}")
    try:
        return TypeAdapter(kind).validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        cause = first.get("ctx", {}).get("error")
        if isinstance(cause, RecipeError):
            raise cause from error
        place = ".".join(str(part) for part in first["loc"])
        raise RecipeError(f"{who}: {place}: {first['msg']}, got {first['input']!r}") from error


def _layers(data: Any, origin: str, methods: Methods) -> tuple[tuple[str, dict[str, Any]], ...]:
    if not isinstance(data, dict):
        raise RecipeError(f"recipe {origin}: 'layers' must map name patterns to settings")
    rows = []
    for pattern, settings in data.items():
        who = f"recipe {origin}: layers: {pattern!r}"
        if not isinstance(settings, dict):
            raise RecipeError(f"{who} must map passes to settings")
        for method, value in settings.items():
            if method not in methods:
                raise RecipeError(f"{who}: no pass {method!r}; known: {_list(methods)}")
            settings = settings | {method: _checked(methods[method], value, f"{who}: {method}")}
        rows.append((str(pattern), settings))
    return tuple(rows)


def _checked(kind: type[Any], value: Any, who: str) -> Any:
    """The settings of a pass for some layers, so that a wrong one is found before any work."""
    if isinstance(value, bool) or value is None:
        return value is not False
    values = value if isinstance(value, dict) else {kind.main: value}
    method = built(kind, values, who)
    whole = [name for name in values if name in getattr(kind, "whole", ())]
    if whole:
        raise RecipeError(f"{who}: {whole[0]} is for the whole model, not for some layers")
    return {name: getattr(method, name) for name in values}


def _patterns(data: Any, origin: str) -> tuple[str, ...]:
    if not isinstance(data, list) or not all(isinstance(item, str) for item in data):
        raise RecipeError(f"recipe {origin}: 'exclude' must be a list of name patterns")
    return tuple(data)


def recipe_data(recipe: Recipe) -> dict[str, Any]:
    """A recipe as plain data, every setting written out, for plans and provenance."""
    return {
        "name": recipe.name,
        "stages": {stage.name: _stage_data(stage) for stage in recipe.stages},
        "layers": {pattern: dict(settings) for pattern, settings in recipe.layers},
        "exclude": list(recipe.exclude),
        "budget": {f.name: getattr(recipe.budget, f.name) for f in fields(recipe.budget)},
    }


def _stage_data(stage: Stage) -> Any:
    passes = [{p.name: _settings(p)} for p in stage.passes]
    if stage.recover is None:
        return passes
    return {"passes": passes, "recover": {stage.recover.name: _settings(stage.recover)}}


def _settings(method: Any) -> dict[str, Any]:
    return {f.name: getattr(method, f.name) for f in fields(method)}


def recipe_from_data(data: Any, origin: str, methods: Methods) -> Recipe:
    """The inverse of :func:`recipe_data`, with the same checks as for a file."""
    return parse_recipe(yaml.safe_dump(data, sort_keys=False), origin, methods)


def _list(names: Sequence[str] | set[str] | Mapping[str, Any] | tuple[str, ...]) -> str:
    return ", ".join(sorted(names)) or "none"


def _kind(value: Any) -> str:
    return {"NoneType": "nothing", "str": "text"}.get(type(value).__name__, type(value).__name__)
