from importlib import import_module

from rich.console import Console

from onnxslim_tk.report.integers import Because, Integers

# By name: type checkers don't see the mapped folder in an editable install.
integers_table = import_module("onnxslim_tk.cli.tables").integers_table


def test_integers_are_counted_by_kind_with_a_line_for_each_reason() -> None:
    rows = [
        Integers(
            "Conv", 64, 61, 60, (Because("big", 2, ("a", "b\x1b[31m")), Because("odd", 1, ()))
        ),
        Integers("MatMul, Gemm", 2, 2, 2, ()),
    ]
    console = Console(width=120)
    with console.capture() as captured:
        console.print(integers_table(rows))
    lines = [line.split("│")[1:-1] for line in captured.get().splitlines() if "│" in line]
    told = [[cell.strip() for cell in line] for line in lines]
    assert told == [
        ["Conv", "64", "61", "60", "big", "2", "a, b\\x1b[31m"],
        ["", "", "", "", "odd", "1", "and 1 more"],
        ["MatMul, Gemm", "2", "2", "2", "", "", ""],
    ]
