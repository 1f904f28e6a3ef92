from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxslim_tk.measure.samples import Samples
from onnxslim_tk.passes import PASSES
from onnxslim_tk.pipeline.options import Options
from onnxslim_tk.pipeline.run import open_workshop
from onnxslim_tk.plan.recipe import parse_recipe
from onnxslim_tk.search.cargo import Cargo, pack_up
from tests.models import mlp, normal

RECIPE = """
name: tried
stages:
  fuse: [fuse]
  sparsify: [sparsify]
  share: [{share: {clusters: 16}}]
  numbers: [quantize]
"""
Load = Callable[..., Cargo]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A small network, ``x (N, 32)`` to ``y (N, 8)``."""
    path = tmp_path / "model.onnx"
    onnx.save(mlp(), path)
    return path


@pytest.fixture(scope="session")
def samples() -> Samples:
    """Forty inputs with structure, for the small network."""
    mixed = normal(5, 40, 8) @ normal(6, 8, 32) + 0.3 * normal(7, 40, 32)
    return Samples([{"x": row[None].astype(np.float32)} for row in mixed])


@pytest.fixture
def load(model: Path, samples: Samples) -> Load:
    """The network with its samples as it travels."""

    def call(recipe: str = RECIPE, **options: object) -> Cargo:
        given = Options(calibration=samples, **options)  # type: ignore[arg-type]
        chosen = parse_recipe(recipe, "tried", PASSES)
        return pack_up(open_workshop(model, chosen, given, None))

    return call
