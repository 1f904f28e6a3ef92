"""How much of the machine a run may take, and where it keeps what it finds."""

import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Final

import typer

from onnxslim_tk.pipeline import Cache, Options

_PANEL: Final = "Effort"


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """Threads and cache."""

    jobs: Annotated[
        int,
        typer.Option(
            rich_help_panel=_PANEL,
            metavar="N",
            help="Threads, -1 for all processors; the result is the same to the byte.",
        ),
    ] = 1
    cache: Annotated[
        Path | None,
        typer.Option(
            rich_help_panel=_PANEL,
            metavar="DIR",
            envvar="ONNXSLIM_CACHE",
            help="Where runs keep what later ones need not find again, up to 2 GB; by default in "
            "the user's folder for such.",
        ),
    ] = None
    no_cache: Annotated[
        bool, typer.Option("--no-cache", rich_help_panel=_PANEL, help="Keep and use nothing.")
    ] = False

    def check(self) -> None:
        """Raise typer.BadParameter for no thread at all, or a cache that can't be a folder."""
        if self.jobs == 0:
            raise typer.BadParameter("must be 1 or more, or -1", param_hint="--jobs")
        if self.cache is not None and self.cache.exists() and not self.cache.is_dir():
            raise typer.BadParameter(f"{self.cache} is not a folder", param_hint="--cache")

    def spent_on(self, options: Options) -> Options:
        """``options`` with these threads and this cache."""
        folder = _usual_folder() if self.cache is None else self.cache
        kept = None if self.no_cache or folder is None else Cache(folder.absolute())
        return replace(options, jobs=self.jobs, cache=kept)


def _usual_folder() -> Path | None:
    """Where programs of this system keep what can be made anew; None where there is no home."""
    try:
        home = Path.home()
    except RuntimeError:
        return None
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = home / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache")
    return base / "onnxslim-tk"
