"""The command line: the only code that prints."""

from typing import Annotated

import typer

from .apply import apply
from .console import foreign_namesake, warn
from .demo import demo
from .distill import distill
from .finetune import finetune
from .inspect import inspect
from .optimize import optimize
from .pack import pack
from .plan import plan
from .search import search
from .spread import spread
from .student import student
from .validate import validate
from .verbs import Verbs
from .version import show_version, version

__all__ = ["app"]

app = typer.Typer(
    name="onnxslim",
    cls=Verbs,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


@app.callback()
def onnxslim(
    version: Annotated[
        bool,
        typer.Option("--version", callback=show_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """Makes ONNX models smaller and faster, and proves that they still work."""
    if foreign_namesake():
        warn(
            "the unrelated package 'onnxslim' is installed too and has a command of the same name; "
            "'onnxslim-tk' always means this one"
        )


for _command in (
    *(optimize, plan, apply, search, validate, student, distill, finetune),
    *(inspect, pack, demo, version),
):
    app.command()(spread(_command))
