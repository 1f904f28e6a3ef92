import numpy as np
import pytest
from onnx import parser

from onnxslim_tk.errors import CalibrationError, SessionError
from onnxslim_tk.measure.latency import measure_latency
from onnxslim_tk.measure.runtime import Feed


def chain(length: int) -> bytes:
    nodes = "\n".join(f"t{i + 1} = MatMul(t{i}, w)" for i in range(length))
    text = f"""<ir_version: 8, opset_import: ["" : 17]>
    g (float[96,96] t0, float[96,96] w) => (float[96,96] t{length}) {{{nodes}}}"""
    serialized: bytes = parser.parse_model(text).SerializeToString()
    return serialized


FEED: Feed = {name: np.ones((96, 96), np.float32) / 96 for name in ("t0", "w")}


def test_tells_a_slower_model() -> None:
    latency = measure_latency(chain(4), chain(32), [FEED], repeats=5)
    assert 3 < latency.ratio < 24
    assert latency.ratio == pytest.approx(latency.result_ms / latency.original_ms)
    assert 0 < latency.original_ms < 100
    assert latency.load_ratio > 0
    assert latency.repeats == 5


def test_a_model_is_as_fast_as_itself() -> None:
    assert 0.5 < measure_latency(chain(8), chain(8), [FEED] * 3).ratio < 2


def test_reads_no_more_feeds_than_it_runs() -> None:
    class Feeds(list[Feed]):
        def __getitem__(self, index: object) -> Feed:  # type: ignore[override]
            assert index in (0, 1)
            return FEED

    measure_latency(chain(1), chain(1), Feeds([FEED] * 9), repeats=2)


def test_needs_feeds_repeats_and_models_that_run() -> None:
    for feeds, repeats in (([], 3), ([FEED], 0)):
        with pytest.raises(CalibrationError, match="at least 1 feed and 1 repeat"):
            measure_latency(chain(1), chain(1), feeds, repeats)
    with pytest.raises(SessionError, match="missing"):
        measure_latency(chain(1), chain(1), [{}])
