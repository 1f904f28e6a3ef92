"""Random damage to valid models: whatever comes of it is a sentence or a result."""

import contextlib
import random
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks.mutations import mutate_bytes, mutate_fields
from benchmarks.seeds import seeds
from onnxslim_tk.errors import OnnxSlimError
from onnxslim_tk.measure.runtime import Session
from onnxslim_tk.pipeline import load, optimize
from onnxslim_tk.report.overview import overview

SEEDS = seeds()
FILE = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@settings(FILE, max_examples=300)
@given(st.sampled_from(sorted(SEEDS)), st.integers(0, 2**32), st.booleans())
def test_no_damage_to_a_model_is_a_traceback_on_loading(
    tmp_path: Path, name: str, seed: int, fields: bool
) -> None:
    damage = mutate_fields if fields else mutate_bytes
    (tmp_path / "in.onnx").write_bytes(damage(SEEDS[name], random.Random(seed)))
    with contextlib.suppress(OnnxSlimError):
        overview(load(tmp_path / "in.onnx"), {}, {})


@pytest.mark.parametrize("name", sorted(SEEDS))
def test_every_seed_is_a_model_that_goes_through(name: str, tmp_path: Path) -> None:
    (tmp_path / "in.onnx").write_bytes(SEEDS[name])
    optimize(tmp_path / "in.onnx", tmp_path / "out.onnx")
    Session(tmp_path / "out.onnx")
