"""``version``."""

import typer

from onnxslim_tk.version import VERSION


def version() -> None:
    """Print the version."""
    typer.echo(VERSION)


def show_version(wanted: bool) -> None:
    """Print the version and leave, for ``--version``."""
    if wanted:
        typer.echo(VERSION)
        raise typer.Exit
