from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes
from numpy.typing import NDArray

from onnxslim_tk.packing.chain import Chain
from onnxslim_tk.packing.decode import decode
from onnxslim_tk.packing.encode import Encoding
from onnxslim_tk.packing.inspect import inspect
from onnxslim_tk.packing.operators import Array
from onnxslim_tk.packing.options import encodings
from onnxslim_tk.packing.scopes import Names
from onnxslim_tk.packing.tables import Tables

OPSETS = (9, 11, 13, 21)
SPECIAL = np.array([0x80000000, 0x7FC00001, 0xFFC12345, 0x7F800000, 1], np.uint32)


def through(encoding: Encoding, opset: int) -> Array | None:
    """Write a tensor's chain, and decode it."""
    names = Names(set())
    tables = Tables(names, opset)
    chain = Chain(names, {}, tables, opset)
    if encoding.write(chain) is None:
        return None
    chain.finish("decoded weight")
    stored = {t.name: t for t in (*tables.chain.initializers, *chain.initializers)}
    nodes = [*tables.chain.nodes, *chain.nodes]
    return decode(nodes, stored, "decoded weight")


def named(array: NDArray[Any], name: str) -> Encoding | None:
    return next((e for e in encodings(inspect(array)) if e.name == name), None)


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


@settings(max_examples=300, deadline=None)
@given(tensors(), st.sampled_from(OPSETS))
def test_every_encoding_decodes_bit_for_bit(array: NDArray[Any], opset: int) -> None:
    names = []
    for encoding in encodings(inspect(array)):
        names.append(encoding.name)
        if opset < encoding.opset:
            continue
        decoded = through(encoding, opset)
        if decoded is not None:
            assert decoded.dtype == array.dtype, encoding.name
            assert decoded.shape == array.shape, encoding.name
            assert decoded.tobytes() == array.tobytes(), encoding.name
    assert len(names) == len(set(names))


@settings(max_examples=150, deadline=None)
@given(tensors(), st.sampled_from(OPSETS))
def test_a_dry_run_counts_the_bytes_of_the_real_one(array: NDArray[Any], opset: int) -> None:
    for encoding in encodings(inspect(array)):
        sizes = []
        for dry in (True, False):
            chain = Chain(Names(set(), 2), {}, lambda key: "xx", opset, dry)
            if opset >= encoding.opset and encoding.write(chain) is not None:
                sizes.append(chain.size())
        # Small data that occur twice in a chain are stored once, which a dry run can't see.
        assert not sizes or sizes[1] <= sizes[0] <= sizes[1] + 600


def sparse(distinct: int, size: int = 3001) -> NDArray[np.float32]:
    generator = np.random.default_rng(distinct)
    values = generator.standard_normal(distinct).astype(np.float32)[
        generator.integers(0, distinct, size)
    ]
    return np.where(generator.random(size) < 0.9, np.float32(0), values)


def by_row(levels: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Weights on a grid for each channel, kept as floats."""
    generator = np.random.default_rng(levels)
    grid = generator.integers(0, levels, shape) - levels // 2
    scales = generator.random((shape[0], *[1] * (len(shape) - 1))) + 0.1
    return (grid * scales).astype(np.float32)


HELD: dict[str, NDArray[Any]] = {
    "constant": np.full((7, 3), -0.0, np.float32),
    "codes-1": np.tile(np.array([1.5, np.nan], np.float32), 9).reshape(3, 6),
    "codes-1.6": (np.arange(35) % 3).astype(np.int8).reshape(5, 7),
    "codes-2": (np.arange(35) % 4).astype(np.int8).reshape(5, 7),
    "codes-2.6": (np.arange(77) % 5).astype(np.int8).reshape(7, 11),
    "codes-2.67": (np.arange(35) % 6).astype(np.int8).reshape(5, 7),
    "codes-3": (np.arange(36) % 8).astype(np.float32).reshape(2, 18),
    "codes-3.2": (np.arange(36) % 9).astype(np.int64).reshape(2, 18),
    "codes-3.6": (np.arange(240) % 12).astype(np.int8),
    "codes-4": (np.arange(35) % 16).astype(np.float16),
    "codes-4.2": (np.arange(133) % 17).astype(np.uint8),
    "codes-5": (np.arange(133) % 32).astype(np.uint8),
    "codes-6": (np.arange(133) % 64).astype(np.float32),
    "codes-7": (np.arange(333) % 127).astype(np.int8),
    "codes-7.2": (np.arange(333) % 144).astype(np.int8),
    "codes-8": np.arange(300, dtype=np.float32).reshape(3, 100) % 200,
    "codes-9": np.arange(3000, dtype=np.float32).reshape(30, 100) % 500,
    "codes-16": np.arange(9000, dtype=np.int32) % 4096,
    "rows-2-8": np.tile(np.arange(400, dtype=np.float32), 8).reshape(8, 400),
    "rows-3-4": np.tile(np.arange(48, dtype=np.int8), 50).reshape(10, 240),
    "rows-4-8": np.tile(np.arange(800, dtype=np.float32), 8).reshape(8, 800),
    "rows-9-5": np.tile(np.arange(288, dtype=np.float32), 20).reshape(20, 288),
    "books-4": by_row(15, (500, 10, 3, 3)),
    "books-3.6": by_row(12, (7, 333)),
    "books-8": by_row(255, (40, 3000)),
    "narrow": np.arange(-1000, 1000, dtype=np.float32).reshape(20, 100) / 8,
    "narrow-24": np.arange(-(1 << 23), 1 << 23, 65521, dtype=np.int32).reshape(1, -1),
    "bfloat16": np.ldexp(np.float32(1), np.arange(-120, 120)).astype(np.float32),
    "tail": np.pad(np.arange(700, dtype=np.float32).reshape(7, 20, 5), [(0, 0), (0, 12), (0, 0)]),
    "bitmask": sparse(15),
    "gaps": sparse(15),
    "escapes-2": np.array([0, 1, 2] * 900 + [*range(100)] * 9, np.int8),
}


@pytest.mark.parametrize("name", HELD)
def test_holds_what_it_is_made_for(name: str) -> None:
    encoding = named(HELD[name], name)
    assert encoding is not None
    decoded = through(encoding, 13)
    assert decoded is not None
    assert decoded.tobytes() == HELD[name].tobytes()


@pytest.mark.parametrize(
    ("entries", "size"),
    [(8, 32_777), (32, 4_099), (64, 16_385), (128, 65_541), (9, 655_363)],
)
def test_many_codes_are_looked_up_in_groups(entries: int, size: int) -> None:
    array = np.random.default_rng(0).integers(0, entries, size).astype(np.int8)
    found = [e for e in encodings(inspect(array)) if e.name.startswith("codes")]
    encoding = found[-1]
    assert encoding.load < 18 * size
    decoded = through(encoding, 11)
    assert decoded is not None
    assert decoded.tobytes() == array.tobytes()


def bell(size: int, spread: float) -> NDArray[np.int8]:
    values = np.random.default_rng(0).normal(0, spread, size)
    return np.clip(np.rint(values), -127, 127).astype(np.int8)


@pytest.mark.parametrize(("size", "spread"), [(70_001, 30), (40_000, 12), (9_000, 2)])
def test_escapes_come_nearer_to_the_entropy(size: int, spread: float) -> None:
    facts = inspect(bell(size, spread))
    assert facts.alphabet is not None
    found = [e for e in encodings(facts) if e.name.startswith("escapes")]
    assert found
    for encoding in found:
        chain = Chain(Names(set(), 2), {}, lambda key: "xx", 13, dry=True)
        assert encoding.write(chain) is not None
        assert facts.alphabet.entropy < chain.size() < 1.12 * facts.alphabet.entropy + 700
        decoded = through(encoding, 13)
        assert decoded is not None
        assert decoded.tobytes() == facts.array.tobytes()


@pytest.mark.parametrize(
    "places", [[0], [4999], [0, 1, 2], [15, 31, 32, 287, 543, 4998], [*range(0, 5000, 9)]]
)
def test_gaps_reach_both_ends(places: list[int]) -> None:
    array = np.zeros(5000, np.int8)
    array[places] = np.arange(1, len(places) + 1) % 50 + 1
    encoding = named(array, "gaps")
    assert encoding is not None
    decoded = through(encoding, 11)
    assert decoded is not None
    assert decoded.tobytes() == array.tobytes()


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("constant", np.array([0.0, -0.0], np.float32)),
        ("codes-4", np.arange(17, dtype=np.float32)),
        ("rows-2-8", np.arange(33, dtype=np.float32)),
        ("narrow", np.array([1.0, 1e-9], np.float32)),
        ("narrow", np.array([1.0, np.nan], np.float32)),
        ("narrow", np.array([0, 1 << 40], np.int64)),
        ("narrow-24", np.array([0, 1 << 23], np.int64)),
        ("narrow-24", np.array([0, 1], np.float32)),
        ("bitmask", np.arange(64, dtype=np.float32)),
        ("escapes-6", np.tile(np.arange(64, dtype=np.int8), 50)),
    ],
)
def test_refuses_what_it_cannot_hold(name: str, array: NDArray[Any]) -> None:
    encoding = named(array, name)
    assert encoding is None or through(encoding, 13) is None
