from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxslim_tk.plan.targets import ONNXRUNTIME_CPU, Work

KINDS = sorted({*ONNXRUNTIME_CPU.floats, *ONNXRUNTIME_CPU.integers} - {"narrow", "depthwise"})


def conv(read: int, given_out: int, kernel: int, side: int, groups: int = 1) -> Work:
    places, taps = side * side, kernel * kernel
    weights = read // groups * given_out * taps
    patches = places * taps * (read // groups) if kernel > 1 else 0
    channels = read // groups, given_out
    return Work("Conv", places * given_out, weights * places, patches, weights, channels, groups)


def product(rows: int, read: int, given_out: int) -> Work:
    size = read * given_out
    channels = read, given_out
    return Work("MatMul", rows * given_out, rows * size, weights=size, channels=channels)


# Microseconds in float and in integers, of one operator in a chain of equal ones.
MEASURED = {
    "pointwise, small": (conv(32, 32, 1, 8), 0.96, 0.80),
    "pointwise": (conv(64, 64, 1, 16), 10.99, 3.34),
    "pointwise, many channels": (conv(256, 256, 1, 14), 109.7, 29.6),
    "blocks that are not full": (conv(200, 200, 1, 10), 40.95, 10.2),
    "3x3": (conv(128, 128, 3, 14), 240.9, 63.7),
    "depthwise, one block": (conv(16, 16, 3, 40, 16), 3.72, 14.46),
    "depthwise": (conv(128, 128, 3, 14, 128), 5.56, 5.59),
    "depthwise 5x5": (conv(256, 256, 5, 7, 256), 4.92, 6.55),
    "depthwise, a block that is not full": (conv(40, 40, 5, 12, 40), 3.80, 9.40),
    "product": (product(128, 384, 384), 176.8, 51.4),
    "product of one row": (product(1, 512, 512), 19.7, 4.71),
    "small product": (product(1, 64, 64), 0.38, 0.76),
}


@pytest.mark.parametrize("name", MEASURED)
def test_times_lie_near_what_was_measured(name: str) -> None:
    work, floating, integer = MEASURED[name]
    assert 0.6 < ONNXRUNTIME_CPU.float_time(work) / floating < 1.7
    assert 0.6 < ONNXRUNTIME_CPU.integer_time(work) / integer < 1.7
    faster = floating > 1.2 * integer
    if faster or integer > 1.2 * floating:
        assert (ONNXRUNTIME_CPU.integer_time(work) < ONNXRUNTIME_CPU.float_time(work)) == faster


@given(
    st.sampled_from(KINDS),
    st.tuples(*[st.integers(0, 10**6)] * 4),
    st.sampled_from(["outputs", "macs", "patches", "weights"]),
    st.integers(1, 10**6),
)
def test_more_work_never_takes_less_time(
    kind: str, sizes: tuple[int, ...], field: str, n: int
) -> None:
    outputs, macs, patches, weights = sizes
    work = Work(kind, outputs, macs, patches, weights, (64, 64))
    more = replace(work, **{field: getattr(work, field) + n})
    target = ONNXRUNTIME_CPU
    for time in (target.float_time, target.integer_time, target.dynamic_time):
        assert 0 <= time(work) <= time(more)


@given(st.integers(16, 64), st.sampled_from([1, 3, 5]), st.integers(1, 40), st.booleans())
def test_floats_take_as_long_for_a_block_that_is_not_full(
    count: int, kernel: int, side: int, depthwise: bool
) -> None:
    full = -(-count // 16) * 16
    some = conv(count, count, kernel, side, count if depthwise else 1)
    whole = conv(full, full, kernel, side, full if depthwise else 1)
    time = ONNXRUNTIME_CPU.float_time
    assert time(some) == pytest.approx(time(whole), rel=1e-2)


def test_depthwise_integers_take_the_cheaper_of_both_ways() -> None:
    for channels, kernel, side in ((8, 3, 40), (40, 5, 12), (200, 3, 10)):
        work = conv(channels, channels, kernel, side, channels)
        ways = ONNXRUNTIME_CPU.odd_time(work), ONNXRUNTIME_CPU.widened_time(work)
        assert ONNXRUNTIME_CPU.integer_time(work) == min(ways)
    few, many = conv(8, 8, 3, 40, 8), conv(200, 200, 3, 10, 200)
    assert ONNXRUNTIME_CPU.odd_time(few) < ONNXRUNTIME_CPU.widened_time(few)
    assert ONNXRUNTIME_CPU.odd_time(many) > ONNXRUNTIME_CPU.widened_time(many)


def test_finding_ranges_in_each_run_costs_time() -> None:
    for rows, read, given_out in ((1, 64, 64), (20, 768, 768), (128, 384, 1536)):
        work = product(rows, read, given_out)
        assert ONNXRUNTIME_CPU.dynamic_time(work) > ONNXRUNTIME_CPU.integer_time(work)


def test_what_only_renames_values_costs_nothing() -> None:
    for time in (ONNXRUNTIME_CPU.float_time, ONNXRUNTIME_CPU.integer_time):
        assert time(Work("Reshape", 10**6)) == 0.0
        assert time(Work("Transpose", 10**6)) > 0.0
