"""Random damage to valid models: whatever comes of it is a sentence or a result."""

import random
from math import prod
from pathlib import Path

import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks.mutations import mutate_bytes, mutate_fields
from benchmarks.seeds import seeds
from onnxslim_tk.measure.runtime import Session
from onnxslim_tk.pipeline import load, optimize, pack
from onnxslim_tk.report.overview import overview
from tests.models import since

from .answers import a_sentence_at_most

SEEDS = seeds()
FILE = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@settings(FILE, max_examples=300)
@given(st.sampled_from(sorted(SEEDS)), st.integers(0, 2**32), st.booleans())
def test_no_damage_to_a_model_is_a_traceback_on_loading(
    tmp_path: Path, name: str, seed: int, fields: bool
) -> None:
    damage = mutate_fields if fields else mutate_bytes
    (tmp_path / "in.onnx").write_bytes(damage(SEEDS[name], random.Random(seed)))
    with a_sentence_at_most():
        overview(load(tmp_path / "in.onnx"), {}, {})


def spoiled(tensor: onnx.TensorProto, how: str) -> None:
    """Damage a stored constant such that it still holds what its dimensions say."""
    size, dims = len(tensor.raw_data), list(tensor.dims)
    if how == "ones":
        tensor.raw_data = b"\xff" * size
    elif how == "zeros":
        tensor.raw_data = bytes(size)
    elif how == "flat":
        tensor.dims[:] = [prod(dims)]
    elif how == "empty":
        tensor.dims[:] = [0, *dims]
        tensor.raw_data = b""
    else:
        tensor.dims[:] = [2, *dims]
        tensor.raw_data = tensor.raw_data * 2


# Commands run models in a worker, so that it is a sentence there as well.
@since("1.28", "ends the process for constants that don't fit together")
@pytest.mark.parametrize("how", ["ones", "zeros", "flat", "empty", "twice"])
@pytest.mark.parametrize("name", [name for name in sorted(SEEDS) if name.endswith("packed")])
def test_codes_and_tables_of_a_packed_weight_that_do_not_fit_are_no_traceback(
    name: str, how: str, tmp_path: Path
) -> None:
    count = len(onnx.ModelProto.FromString(SEEDS[name]).graph.initializer)
    for index in range(count):
        proto = onnx.ModelProto.FromString(SEEDS[name])
        spoiled(proto.graph.initializer[index], how)
        (tmp_path / "in.onnx").write_bytes(proto.SerializeToString())
        with a_sentence_at_most():
            overview(load(tmp_path / "in.onnx"), {}, {})
            pack(tmp_path / "in.onnx", tmp_path / "out.onnx")


@pytest.mark.parametrize("name", sorted(SEEDS))
def test_every_seed_is_a_model_that_goes_through(name: str, tmp_path: Path) -> None:
    (tmp_path / "in.onnx").write_bytes(SEEDS[name])
    optimize(tmp_path / "in.onnx", tmp_path / "out.onnx")
    before, after = (Session(tmp_path / f"{name}.onnx") for name in ("in", "out"))
    assert after.inputs == before.inputs
    assert [info.name for info in after.outputs] == [info.name for info in before.outputs]
