from importlib import import_module
from io import StringIO
from time import sleep

import pytest
from rich.console import Console

# By name: type checkers don't see the mapped folder in an editable install.
Steps = import_module("onnxslim_tk.cli.progress").Steps


def shown_after(seconds: float, patience: float, quiet: bool, terminal: bool) -> str:
    stream = StringIO()
    console = Console(file=stream, force_terminal=terminal, width=100)
    with Steps(quiet, console, patience) as steps:
        steps("numbers: [red]observe\x1b", 3, 20)
        sleep(seconds)
    return stream.getvalue()


def test_a_step_shows_up_once_patience_ends() -> None:
    text = shown_after(0.3, patience=0.01, quiet=False, terminal=True)
    assert "numbers: [red]observe\\x1b" in text
    assert "3/20" in text


@pytest.mark.parametrize(
    ("patience", "quiet", "terminal"),
    [(60, False, True), (0.01, True, True), (60, False, False), (0.01, True, False)],
)
def test_nothing_shows_up_otherwise(patience: float, quiet: bool, terminal: bool) -> None:
    assert shown_after(0.1, patience, quiet, terminal) == ""


def test_a_terminal_sees_the_time_left() -> None:
    stream = StringIO()
    with Steps(False, Console(file=stream, force_terminal=True, width=100), 0.01) as steps:
        for done in range(4):
            steps("measure", done, 40)
            sleep(0.1)
    assert "left" in stream.getvalue()


def test_a_log_gets_one_plain_line_a_step() -> None:
    stream = StringIO()
    with Steps(False, Console(file=stream, force_terminal=False, width=100), 0.01) as steps:
        steps("observe \x1b", 0, 9)
        sleep(0.2)
        for done in range(9):
            steps("measure", done, 9)
    assert stream.getvalue().splitlines() == ["observe \\x1b", "measure"]
