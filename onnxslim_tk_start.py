"""The way into the command line: ready for Ctrl-C before the package is imported.

An import of any part of ``onnxslim_tk`` is one of its interface with the runtime and all, so this
module lies beside the package.
"""

import os
import signal
from importlib import import_module
from types import FrameType


def main() -> None:
    """Run the command line, in which Ctrl-C is one sentence from here on."""
    # Who started us may have asked for no Ctrl-C at all, as a shell does for what it puts aside.
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        _command_line()
        return
    signal.signal(signal.SIGINT, _leave)
    try:
        _command_line()
    finally:
        # All has been said by now.
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def _command_line() -> None:
    import_module("onnxslim_tk.cli").app()


def _leave(number: int, frame: FrameType | None) -> None:
    # Nothing is under way that wants tidying up, and no library's import is made to be broken off
    # by an exception.
    os.write(2, b"error: interrupted; nothing was written\n")
    os._exit(128 + number)
