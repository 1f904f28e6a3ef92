from importlib import import_module
from io import StringIO

import pytest
from rich.console import Console

# By name: type checkers don't see the mapped folder in an editable install.
text_of = import_module("onnxslim_tk.cli.console")


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("plain näme", "plain näme"),
        ("\x1b[2J", "\\x1b[2J"),
        ("a\r\nb\x00", "a\\r\\nb\\x00"),
        ("\u202eabc", "\\u202eabc"),
        ("\ud800", "\\ud800"),
        ("[link=file:///]x[/link]", "[link=file:///]x[/link]"),
        ("[/]", "[/]"),
        ("ends in \\", "ends in \\"),
        (":cat:", ":cat:"),
    ],
)
def test_text_from_outside_is_printed_as_it_is_or_as_escapes(text: str, seen: str) -> None:
    stream = StringIO()
    Console(file=stream, emoji=False, width=100).print(f"[bold]{text_of.shown(text)}[/] end")
    assert stream.getvalue() == f"{seen} end\n"
    assert text_of.visible(text) == seen
