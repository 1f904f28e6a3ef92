from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes
from numpy.typing import NDArray

from onnxslim_tk.packing.chain import Chain, Tables
from onnxslim_tk.packing.decode import decode
from onnxslim_tk.packing.encode import ENCODINGS, Encoding
from onnxslim_tk.packing.inspect import inspect
from onnxslim_tk.packing.operators import Array
from onnxslim_tk.packing.scopes import Names

OPSETS = (9, 11, 13, 21)
BY_NAME = {encoding.name: encoding for encoding in ENCODINGS}
SPECIAL = np.array([0x80000000, 0x7FC00001, 0xFFC12345, 0x7F800000, 1], np.uint32)


def through(encoding: Encoding, array: NDArray[Any], opset: int) -> Array | None:
    names = Names(set())
    tables = Tables(names, opset)
    chain = Chain(names, {}, tables, opset)
    if encoding.encode(inspect(array), chain) is None:
        return None
    chain.finish("decoded weight")
    stored = {t.name: t for t in (*tables.chain.initializers, *chain.initializers)}
    nodes = [*tables.chain.nodes, *chain.nodes]
    return decode(nodes, stored, "decoded weight")


@st.composite
def tensors(draw: st.DrawFn) -> NDArray[Any]:
    """Tensors of some entries, some sparsity, and the bit patterns that arithmetic would lose."""
    dtype = draw(st.sampled_from([np.float32, np.float16, np.int8, np.uint8, np.int32, np.int64]))
    shape = draw(st.one_of(st.just(()), array_shapes(min_dims=1, max_dims=4, max_side=40)))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    count = draw(st.sampled_from([1, 2, 3, 4, 15, 16, 17, 255, 256, 1000]))
    width = np.dtype(dtype).itemsize
    raw = generator.integers(0, 256, (count, width), np.uint8)
    entries = np.ascontiguousarray(raw).view(dtype)[:, 0]
    if dtype == np.float32 and draw(st.booleans()):
        entries = np.concatenate([entries, SPECIAL.view(np.float32)])
    array = entries[generator.integers(0, len(entries), shape)]
    sparsity = draw(st.sampled_from([0.0, 0.3, 0.6, 0.9, 0.99]))
    background = draw(st.sampled_from([np.zeros(1, dtype)[0], entries[0]]))
    hidden = generator.random(shape) < sparsity
    return np.asarray(np.where(hidden, background, array), dtype)


@pytest.mark.parametrize("encoding", ENCODINGS, ids=lambda encoding: str(encoding.name))
@settings(max_examples=40, deadline=None)
@given(tensors(), st.sampled_from(OPSETS))
def test_decodes_bit_for_bit(encoding: Encoding, array: NDArray[Any], opset: int) -> None:
    if opset < encoding.opset:
        return
    decoded = through(encoding, array, opset)
    if decoded is not None:
        assert decoded.dtype == array.dtype
        assert decoded.shape == array.shape
        assert decoded.tobytes() == array.tobytes()


def sparse(distinct: int, size: int = 3001) -> NDArray[np.float32]:
    generator = np.random.default_rng(distinct)
    values = generator.standard_normal(distinct).astype(np.float32)[
        generator.integers(0, distinct, size)
    ]
    return np.where(generator.random(size) < 0.9, np.float32(0), values)


HELD: dict[str, NDArray[Any]] = {
    "constant": np.full((7, 3), -0.0, np.float32),
    "codes-1": np.tile(np.array([1.5, np.nan], np.float32), 9).reshape(3, 6),
    "codes-2": (np.arange(35) % 3).astype(np.int8).reshape(5, 7),
    "codes-4": (np.arange(35) % 16).astype(np.float16),
    "codes-8": np.arange(300, dtype=np.float32).reshape(3, 100) % 200,
    "vectors-2": np.tile(np.arange(400, dtype=np.float32), 2).reshape(2, 400),
    "vectors-4": np.tile(np.arange(800, dtype=np.float32), 2).reshape(8, 200),
    "vectors-8": np.tile(np.arange(1600, dtype=np.float32), 2),
    "narrow": np.arange(-1000, 1000, dtype=np.float32).reshape(20, 100) / 8,
    "bfloat16": np.ldexp(np.float32(1), np.arange(-120, 120)).astype(np.float32),
    "tail": np.pad(np.arange(700, dtype=np.float32).reshape(7, 20, 5), [(0, 0), (0, 12), (0, 0)]),
    "bitmask": sparse(15),
    "gaps-4": sparse(15),
    "gaps-8": sparse(2000),
}


@pytest.mark.parametrize("name", BY_NAME)
def test_holds_what_it_is_made_for(name: str) -> None:
    decoded = through(BY_NAME[name], HELD[name], 13)
    assert decoded is not None
    assert decoded.tobytes() == HELD[name].tobytes()


@pytest.mark.parametrize("name", ["gaps-4", "gaps-8"])
@pytest.mark.parametrize("places", [[0], [4999], [0, 1, 2], [15, 31, 32, 287, 543, 4998]])
def test_gaps_reach_both_ends(name: str, places: list[int]) -> None:
    array = np.zeros(5000, np.int8)
    array[places] = np.arange(1, len(places) + 1)
    decoded = through(BY_NAME[name], array, 11)
    assert decoded is not None
    assert decoded.tobytes() == array.tobytes()


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("constant", np.array([0.0, -0.0], np.float32)),
        ("codes-4", np.arange(17, dtype=np.float32)),
        ("vectors-2", np.arange(33, dtype=np.float32)),
        ("narrow", np.array([1.0, 1e-9], np.float32)),
        ("narrow", np.array([1.0, np.nan], np.float32)),
        ("narrow", np.array([0, 1 << 40], np.int64)),
        ("bitmask", np.arange(64, dtype=np.float32)),
    ],
)
def test_refuses_what_it_cannot_hold(name: str, array: NDArray[Any]) -> None:
    assert through(BY_NAME[name], array, 13) is None
