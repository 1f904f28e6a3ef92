"""The commands of docs/examples.md, as they stand there, on small files of the same names."""

import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest

pytest.importorskip("torch", reason="the extra train isn't installed")

from onnxslim_tk import demo
from tests.cli.conftest import Run
from tests.models import chain_cnn, normal

PAGE = Path(__file__).resolve().parents[2] / "docs" / "examples.md"
VGG = sorted((Path(__file__).resolve().parents[2] / "models").rglob("vgg16.onnx"))


def section(title: str) -> str:
    """What the page says under a title."""
    text = PAGE.read_text(encoding="utf-8")
    return text.split(f"\n## {title}\n")[1].split("\n## ")[0]


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def commands(title: str) -> list[list[str]]:
    lines = [line for block in blocks(section(title), "bash") for line in block.splitlines()]
    assert lines
    assert all(line.startswith("onnxslim ") for line in lines)
    return [shlex.split(line)[1:] for line in lines]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with the demo's classifier and images under the page's names."""
    monkeypatch.chdir(tmp_path)
    for name in ("resnet.onnx", "digits.onnx"):
        shutil.copy(demo.MODEL, tmp_path / name)
    shutil.copy(demo.CALIBRATION, tmp_path / "digits.npz")
    shutil.copy(demo.TEST, tmp_path / "test.npz")
    return tmp_path


def parameters(path: Path) -> int:
    graph = onnx.load(path).graph
    return sum(int(np.prod(tensor.dims)) for tensor in graph.initializer)


def test_eight_bits_take_about_a_quarter(folder: Path, run: Run) -> None:
    for command in commands("Eight bits"):
        assert run(*command).exit_code == 0
    before, after = (folder / name for name in ("resnet.onnx", "int8.onnx"))
    assert after.stat().st_size < 0.4 * before.stat().st_size


def prune(folder: Path, run: Run) -> None:
    (recipe,) = blocks(section("Channels, layer by layer"), "yaml")
    (folder / "prune.yaml").write_text(recipe, encoding="utf-8")
    for command in commands("Channels, layer by layer"):
        assert run(*command).exit_code == 0
    # What has learned keeps the shape that it was cut to.
    assert parameters(folder / "pruned.onnx") == parameters(folder / "recovered.onnx")
    assert parameters(folder / "pruned.onnx") < 0.9 * parameters(folder / "vgg16.onnx")


def test_channels_go_by_the_shares_of_the_recipe(folder: Path, run: Run) -> None:
    proto = chain_cnn()
    # The recipe's patterns want blocks of their names.
    convolutions = [node for node in proto.graph.node if node.op_type == "Conv"]
    for node, block in zip(convolutions, (1, 5), strict=True):
        node.name = f"block{block}_conv1"
    onnx.save(proto, folder / "vgg16.onnx")
    np.savez(folder / "pictures.npz", x=normal(0, 24, 3, 16, 16))
    prune(folder, run)


@pytest.mark.zoo
@pytest.mark.skipif(not VGG, reason="models/ has no vgg16.onnx")
def test_channels_of_the_real_net_go_by_the_shares_of_the_recipe(folder: Path, run: Run) -> None:
    shutil.copy(VGG[0], folder / "vgg16.onnx")
    pictures = np.random.default_rng(0).uniform(0, 1, (24, 240, 240, 3)).astype(np.float32)
    np.savez(folder / "pictures.npz", input=pictures)
    prune(folder, run)


def test_a_student_half_as_wide_is_taught(folder: Path, run: Run) -> None:
    for command in commands("A student"):
        assert run(*command).exit_code in (0, 3), command
    assert parameters(folder / "taught.onnx") < 0.5 * parameters(folder / "digits.onnx")
