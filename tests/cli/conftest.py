from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser
from typer.testing import CliRunner, Result

Run = Callable[..., Result]

HIDDEN = "hid[red]den\x1b[31m"
"""A tensor's name that tries to style and to move the terminal."""


@pytest.fixture(autouse=True)
def _in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands start no worker, unless a test says --isolate."""
    monkeypatch.setenv("ONNXSLIM_ISOLATE", "0")


@pytest.fixture(scope="session")
def app() -> Any:
    return import_module("onnxslim_tk.cli").app


@pytest.fixture
def run(app: Any) -> Run:
    def call(*arguments: object) -> Result:
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        # A traceback would show up as any exception but SystemExit.
        assert result.exception is None or isinstance(result.exception, SystemExit)
        return result

    return call


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """``x (N, 16)`` to ``logits (N, 5)``: two dense layers, the first with a hostile name."""
    text = """<ir_version: 8, opset_import: ["": 17]>
    tiny (float[N, 16] x) => (float[N, 5] logits) {
        hidden = Gemm(x, w1, b1)
        r = Relu(hidden)
        logits = Gemm(r, w2, b2)
    }"""
    proto = parser.parse_model(text)
    rng = np.random.default_rng(0)
    for name, shape in {"w1": (16, 64), "b1": (64,), "w2": (64, 5), "b2": (5,)}.items():
        values = (rng.standard_normal(shape) / 4).astype(np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(values, name))
    proto.graph.node[0].output[0] = proto.graph.node[1].input[0] = HIDDEN
    path = tmp_path / "tiny.onnx"
    onnx.save(proto, path)
    return path


@pytest.fixture
def samples(tmp_path: Path, model: Path) -> Path:
    """Forty samples for the model, with its own decisions as labels."""
    images = np.random.default_rng(1).standard_normal((40, 16)).astype(np.float32)
    hidden, head = onnx.load(model).graph.initializer[0], onnx.load(model).graph.initializer[2]
    scores = np.maximum(images @ numpy_helper.to_array(hidden), 0) @ numpy_helper.to_array(head)
    path = tmp_path / "samples.npz"
    np.savez(path, x=images, labels=scores.argmax(1))
    return path


@pytest.fixture
def coarse(model: Path) -> Path:
    """The model with few distinct values in its first weight."""
    proto = onnx.load(model)
    first = proto.graph.initializer[0]
    values = np.round(numpy_helper.to_array(first) * 4) / 4
    first.CopyFrom(numpy_helper.from_array(values.astype(np.float32), first.name))
    onnx.save(proto, model)
    return model
