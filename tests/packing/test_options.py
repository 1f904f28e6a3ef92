import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from onnxslim_tk.packing import pack, packed_bytes
from onnxslim_tk.packing.inspect import inspect
from onnxslim_tk.packing.options import choose, options

from .conftest import Build


def values(kind: str) -> NDArray[Any]:
    generator = np.random.default_rng(0)
    picked = np.rint(generator.normal(0, 20, (200, 300)))
    match kind:
        case "sparse":
            return np.where(generator.random((200, 300)) < 0.9, 0, picked).astype(np.float32)
        case "eight":
            return generator.integers(0, 8, (200, 300)).astype(np.int8)
        case "bell":
            return np.clip(picked, -127, 127).astype(np.int8)
        case "rows":
            book = generator.standard_normal((16, 4)).astype(np.float32)
            return book[generator.integers(0, 16, 15_000)].reshape(200, 300)
    return generator.standard_normal((200, 300)).astype(np.float32)


@pytest.mark.parametrize("kind", ["sparse", "eight", "bell", "rows", "dense"])
def test_the_estimate_is_what_a_model_gets(build: Build, kind: str) -> None:
    array = values(kind)
    model = build("g (int64[N] x) => (float[N,300] y) { y = Gather(w, x) }", 17, w=array)
    model.graph.output[0].type.tensor_type.elem_type = numpy_helper.from_array(array).data_type
    plain = len(model.graph.initializer[0].SerializeToString())
    rows = {row.name: row for row in pack(model)}
    found = rows["w"].bytes_after if "w" in rows else plain
    # What a small model may cost at load besides is not in the estimate.
    assert 0.999 * found <= packed_bytes(array, 17) <= 1.2 * found


@pytest.fixture
def in_small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let some hundred KB be as big for us as some hundred MB are."""
    for module in ("inspect", "encode", "operators", "planes"):
        monkeypatch.setattr(f"onnxslim_tk.packing.{module}._BLOCK", 1 << 10)


def most_memory(call: Callable[[], object]) -> int:
    """Bytes that ``call`` holds at a time."""
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("kind", "times"), [("sparse", 1.2), ("eight", 1.6), ("bell", 1.6), ("rows", 1.2), ("dense", 1)]
)
def test_counting_takes_little_more_than_the_codes(
    in_small_blocks: None, kind: str, times: float
) -> None:
    array = np.tile(values(kind), (8, 1))
    packed_bytes(array[:200])
    assert most_memory(lambda: packed_bytes(array)) < times * array.nbytes


def test_the_codes_of_one_tensor_are_held_at_a_time(build: Build, in_small_blocks: None) -> None:
    arrays = {f"w{k}": np.roll(values("bell"), k) for k in range(12)}
    reads = " ".join(f"y{k} = Gather({name}, x)" for k, name in enumerate(arrays))
    outputs = ", ".join(f"int8[N,300] y{k}" for k in range(len(arrays)))
    model = build(f"g (int64[N] x) => ({outputs}) {{ {reads} }}", 17, **arrays)
    packed_bytes(arrays["w0"])
    # What is written, and what one tensor takes on the way.
    assert most_memory(lambda: pack(model)) < (len(arrays) + 12) * arrays["w0"].nbytes


def test_spends_what_nobody_minds_where_a_byte_less_costs_least(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("onnxslim_tk.packing.options._FREE", 48 << 20)
    generator = np.random.default_rng(0)
    shares = np.exp(-0.5 * ((np.arange(16) - 7.5) / 3.2) ** 2)
    one = generator.choice(16, 1_200_000, p=shares / shares.sum()).astype(np.int8)
    tensors = [(array.nbytes, tuple(options(inspect(array), 17))) for array in (one, one[:-1])]
    taken = [option.name for option in choose(tensors, 17) if option is not None]
    # Both would take more than there is.
    assert sorted(taken) == ["codes-4", "escapes-3.2"]
