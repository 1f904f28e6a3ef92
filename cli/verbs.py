"""The group of all commands: errors become one line and an exit code, a missing verb a hint."""

import shlex
import signal
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperGroup

from onnxslim_tk.errors import OnnxSlimError

from .console import complain
from .supervise import Interrupted, ended_by_signals

WRONG_USAGE = 2
"""What Typer gives for wrong options."""
SIGNALLED = 128
"""What shells add to the number of the signal that ended a program."""


class Verbs(TyperGroup):
    """Runs a command and says what went wrong in one line."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command; every error of the package's own tree ends with its exit code."""
        try:
            with ended_by_signals():
                return super().invoke(ctx)
        except OnnxSlimError as error:
            complain(str(error))
            raise typer.Exit(error.exit_code) from error
        except MemoryError as error:
            complain("not enough memory for this model and these samples")
            raise typer.Exit(1) from error
        except KeyboardInterrupt as error:
            ended = error if isinstance(error, Interrupted) else Interrupted(signal.SIGINT)
            complain(f"interrupted; {ended.left}")
            raise typer.Exit(SIGNALLED + ended.number) from error

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command named first, or the hint that a verb is missing before a file."""
        if args[0] not in self.commands and _is_file(args[0]):
            verb = "inspect" if len(args) == 1 else "optimize"
            line = shlex.join([ctx.info_name or "onnxslim", verb, *args])
            # Not ctx.fail: its frame would break the line that is to be copied.
            complain(f"{args[0]} is a file, not a command; try: {line}")
            raise typer.Exit(WRONG_USAGE)
        return super().resolve_command(ctx, args)


def _is_file(text: str) -> bool:
    return Path(text).suffix.lower() == ".onnx" or Path(text).is_file()
