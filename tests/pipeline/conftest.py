from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxslim_tk.measure.samples import Samples
from tests.models import mlp, normal, with_metadata

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a model to a file and give its path."""

    def call(proto: onnx.ModelProto, name: str = "model.onnx") -> Path:
        path = tmp_path / name
        onnx.save(proto, path)
        return path

    return call


@pytest.fixture
def model(write: Write) -> Path:
    """A small network with metadata, ``x (N, 32)`` to ``y (N, 8)``."""
    return write(with_metadata(mlp()))


@pytest.fixture(scope="session")
def samples() -> Samples:
    """Forty inputs with structure, for the small network."""
    mixed = normal(5, 40, 8) @ normal(6, 8, 32) + 0.3 * normal(7, 40, 32)
    return Samples([{"x": row[None].astype(np.float32)} for row in mixed])
