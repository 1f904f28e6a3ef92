"""Dataclasses of options as the parameters of a command."""

import inspect
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar, get_type_hints

Command = TypeVar("Command", bound=Callable[..., None])


def spread(command: Command) -> Callable[..., None]:
    """``command`` with the fields of its option dataclasses as parameters in their place."""
    taken = inspect.signature(command).parameters.values()
    groups: dict[str, Any] = {p.name: p.annotation for p in taken if is_dataclass(p.annotation)}
    parameters = []
    for parameter in taken:
        if parameter.name not in groups:
            parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))
            continue
        hints = get_type_hints(parameter.annotation, include_extras=True)
        parameters += [
            inspect.Parameter(
                field.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=field.default,
                annotation=hints[field.name],
            )
            for field in fields(parameter.annotation)
        ]

    def run(**values: Any) -> None:
        built: dict[str, Any] = {}
        for name, kind in groups.items():
            built[name] = kind(**{field.name: values.pop(field.name) for field in fields(kind)})
        command(**values, **built)

    # Typer keeps the line breaks of a docstring, which suit no other width.
    paragraphs = (inspect.getdoc(command) or "").split("\n\n")
    run.__doc__ = "\n\n".join(" ".join(text.split()) for text in paragraphs)
    run.__name__ = command.__name__
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return run
