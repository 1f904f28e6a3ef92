"""What a vendor wrote into a file can neither style nor forge what the terminal shows."""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import onnx
import pytest
from typer.testing import CliRunner, Result

from .models import plain

Run = Callable[..., Result]
EVIL = "\x1b[31m[bold]a\x07\nerror: b\u202e<b>"


@pytest.fixture
def run() -> Run:
    app = import_module("onnxslim_tk.cli").app

    def call(*arguments: object) -> Result:
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        assert result.exception is None or isinstance(result.exception, SystemExit)
        return result

    return call


def evil(*, dangling: bool) -> onnx.ModelProto:
    """The plain model with a name at every place that turns colours and starts a new line."""
    proto = plain()
    proto.producer_name = proto.doc_string = EVIL
    proto.metadata_props.add(key=EVIL, value=EVIL)
    proto.graph.node.add(op_type=EVIL, domain=EVIL, input=["a"], output=["z"], name=EVIL)
    for node in proto.graph.node[:2]:
        node.name = f"{EVIL}{node.op_type}"
    proto.graph.node[0].output[0] = proto.graph.node[1].input[0] = EVIL
    proto.graph.node[2].input[0] = "nowhere" if dangling else EVIL
    proto.opset_import.add(domain=EVIL, version=1)
    return proto


@pytest.mark.parametrize("dangling", [False, True])
def test_names_of_a_file_move_no_terminal(run: Run, tmp_path: Path, dangling: bool) -> None:
    source, target = tmp_path / "in.onnx", tmp_path / "out.onnx"
    source.write_bytes(evil(dangling=dangling).SerializeToString())
    results = [run("inspect", source), run("optimize", source, target), run("pack", source, target)]
    assert [result.exit_code for result in results] == [int(dangling)] * 3
    for result in results:
        assert all(c.isprintable() or c == "\n" for c in result.output)
        if result.exit_code:
            assert result.stderr.startswith("error: ")
            assert len(result.stderr.splitlines()) == 1
    assert target.exists() != dangling


def test_a_forged_line_stays_part_of_the_sentence(run: Run, tmp_path: Path) -> None:
    proto = plain()
    proto.graph.node[1].input[0] = "a\nerror: all is lost"
    (tmp_path / "in.onnx").write_bytes(proto.SerializeToString())
    result = run("inspect", tmp_path / "in.onnx")
    assert result.exit_code == 1
    assert len(result.stderr.splitlines()) == 1
