"""Where text goes, and how a name from somebody's file is made harmless on the way."""

from importlib.metadata import PackageNotFoundError, distribution
from typing import Final

from rich.console import Console
from rich.markup import escape

_WIDTH: Final = 120
"""Columns of tables that go into a file or a pipe."""


def out() -> Console:
    """The console for results, on stdout."""
    return _console(stderr=False)


def err() -> Console:
    """The console for errors, warnings and progress, on stderr."""
    return _console(stderr=True)


def _console(stderr: bool) -> Console:
    # Neither emoji codes nor numbers in a vendor's names are ours to decorate.
    console = Console(stderr=stderr, emoji=False, highlight=False)
    return (
        console
        if console.is_terminal
        else Console(stderr=stderr, emoji=False, highlight=False, width=_WIDTH)
    )


def visible(text: str) -> str:
    """``text`` on one line, control characters and other invisible ones as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def shown(text: str) -> str:
    """``text`` from outside, fit for rich's markup: it can neither style nor move anything."""
    return escape(visible(text))


def say(text: str) -> None:
    """Print one line of our own markup on stdout."""
    out().print(text, soft_wrap=True)


def warn(text: str) -> None:
    """Print one warning line on stderr."""
    err().print(f"[bold yellow]warning:[/] {shown(text)}", soft_wrap=True)


def complain(text: str) -> None:
    """Print one error line on stderr."""
    err().print(f"[bold red]error:[/] {shown(text)}", soft_wrap=True)


def foreign_namesake() -> bool:
    """Whether the unrelated distribution ``onnxslim`` is installed."""
    try:
        distribution("onnxslim")
    except PackageNotFoundError:
        return False
    return True
