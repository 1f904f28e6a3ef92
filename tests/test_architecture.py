import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LEFT_OF: dict[str, str] = {
    "errors": "",
    "version": "",
    "writing": "errors",
    "demo": "",
    "kernels": "errors",
    "graph": "errors kernels",
    "measure": "errors kernels graph",
    "packing": "errors kernels graph",
    "plan": "errors kernels graph measure packing writing",
    "passes": "errors kernels graph measure packing plan recover train",
    "recover": "errors kernels graph measure packing plan",
    "train": "errors kernels graph measure packing plan writing",
    "report": "errors kernels graph measure packing plan version writing",
    "pipeline": "errors kernels graph measure packing plan passes recover report train version "
    "writing",
    "search": "errors kernels graph measure packing plan passes recover report train pipeline "
    "version writing",
}
FILES = [p for p in sorted(ROOT.glob("onnxslim_tk/**/*.py")) if p.parent.name != "onnxslim_tk"]


def imported(path: Path) -> set[str]:
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    names = {a.name for n in nodes if isinstance(n, ast.Import) for a in n.names}
    return names | {n.module or "" for n in nodes if isinstance(n, ast.ImportFrom) and not n.level}


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_file_imports_only_from_rooms_to_its_left(path: Path) -> None:
    room = path.relative_to(ROOT / "onnxslim_tk").parts[0]
    rooms = {n.split(".")[1] for n in imported(path) if n.startswith("onnxslim_tk.")}
    assert rooms - {room} <= set(LEFT_OF[room].split())


def test_kernels_know_nothing_of_onnx() -> None:
    kernels = [p for p in FILES if p.parent.name == "kernels"]
    assert not [p for p in kernels if any(n.startswith("onnx") for n in outside(p))]


def outside(path: Path) -> set[str]:
    return {n for n in imported(path) if not n.startswith("onnxslim_tk")}


def test_one_file_opens_the_runtime() -> None:
    users = [p.stem for p in FILES if any(n.split(".")[0] == "onnxruntime" for n in imported(p))]
    assert users == ["runtime"]


def test_passes_leave_each_other_alone() -> None:
    passes = [p for p in FILES if p.parent.name == "passes" and p.stem != "__init__"]
    assert not [p for p in passes if any(n.startswith("onnxslim_tk.passes") for n in imported(p))]


def test_only_the_command_line_prints() -> None:
    for path in FILES:
        tree = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        calls = {
            n.func.id for n in tree if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)
        }
        assert "print" not in calls, path
        assert not {n.split(".")[0] for n in imported(path)} & {"rich", "typer"}, path
