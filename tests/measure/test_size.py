import zlib

import numpy as np
import pytest

from onnxslim_tk.measure.observe import observed_shapes
from onnxslim_tk.measure.size import parameters, size_of
from tests.models import chain_cnn, model_of, normal, opened

HEAD = '<ir_version: 8, opset_import: ["": 17]>'


def test_figures_are_those_that_one_counts_by_hand() -> None:
    proto = chain_cnn()
    data = proto.SerializeToString()
    model = opened(proto)
    size = size_of(data, model, observed_shapes(model, {"x": normal(0, 2, 3, 16, 16)}))
    assert size.file_bytes == len(data)
    assert size.gzip_bytes == len(zlib.compress(data, 6))
    convolutions = 16 * 3 * 9 + 32 * 16 * 9
    assert size.parameters == convolutions + 32 + 10 * 32 + 10 + 4 * (16 + 32)
    # Two images of 16 by 16 places, then 8 by 8.
    assert size.macs == 2 * (16 * 3 * 9 * 256 + 32 * 16 * 9 * 64 + 320)


def test_without_shapes_there_are_no_multiplications_to_count() -> None:
    model = opened(chain_cnn())
    assert size_of(b"", model, {}).macs is None
    assert size_of(b"", model, {"c1": (1, 16, 16, 16)}).macs is None


def test_shared_weights_count_once_and_shapes_and_switches_not_at_all() -> None:
    text = f"""{HEAD} g (float[N, 8] x, bool c) => (float[A, B] y) {{
        a = MatMul(x, w)
        b = MatMul(a, w)
        r = Reshape(b, s)
        k = Cast<to = 1>(q)
        d = Mul(k, one)
        e = MatMul(r, d)
        y = If(c)<
            then_branch = yes () => (float[A, B] p) {{ p = Add(e, v) }},
            else_branch = no () => (float[A, B] n) {{ n = Neg(e) }}
        >
    }}"""
    constants = {
        "w": normal(0, 8, 8),
        "s": np.array([-1, 8]),
        "q": np.ones((8, 8), np.int8),
        "one": np.float32(1),
        "v": normal(1, 8),
    }
    assert parameters(opened(model_of(text, constants))) == 64 + 64 + 8


def test_a_big_file_is_reckoned_from_pieces_all_over_it(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    data = rng.integers(0, 9, 1 << 19, np.uint8).tobytes() + bytes(1 << 19)
    model = opened(chain_cnn())
    whole = size_of(data, model, {}).gzip_bytes
    monkeypatch.setattr("onnxslim_tk.measure.size._SAMPLED", 1 << 17)
    monkeypatch.setattr("onnxslim_tk.measure.size._PIECE", 1 << 11)
    read: list[int] = []
    plain = zlib.compressobj

    class Counting:
        def __init__(self, level: int) -> None:
            self.packer = plain(level)

        def compress(self, part: memoryview) -> bytes:
            read.append(len(part))
            return self.packer.compress(part)

        def flush(self) -> bytes:
            return self.packer.flush()

    monkeypatch.setattr("onnxslim_tk.measure.size.zlib.compressobj", Counting)
    assert size_of(data, model, {}).gzip_bytes == pytest.approx(whole, rel=0.1)
    assert sum(read) == len(data) // 32
