from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxslim_tk.plan.knapsack import alternatives
from onnxslim_tk.plan.policy import asked_for, within
from onnxslim_tk.plan.proposal import Proposal
from onnxslim_tk.plan.sizing import is_graded, sized


def row(target: str, setting: int, saved: int, error: float, method: str = "share") -> Proposal:
    return Proposal((target,), method, setting, bytes_saved=saved, error=error)


@st.composite
def ladders(draw: st.DrawFn) -> list[Proposal]:
    """Some layers of one size or another, with finer and coarser settings."""
    rows = []
    for target in "abcd"[: draw(st.integers(1, 4))]:
        size, weight = draw(st.integers(50, 1000)), draw(st.floats(1e-3, 1.0))
        for bits in (4, 8, 6, 3, 2):
            saved = size * (32 - bits) // 32
            rows.append(row(target, bits, saved, weight * 4.0**-bits))
    return rows


@given(ladders(), st.integers(-200, 200))
@settings(max_examples=40, deadline=None)
def test_no_other_choice_of_that_size_errs_less(rows: list[Proposal], extra: int) -> None:
    target = sum(p.bytes_saved for p in asked_for(rows)) + extra
    groups = alternatives(rows)
    most = sum(max(p.bytes_saved for p in group) for group in groups)
    chosen = sized(rows, extra)
    assert sum(p.bytes_saved for p in chosen) >= min(target, most)
    best = min(
        sum(p.error for p in some if p is not None)
        for some in product(*([None, *group] for group in groups))
        if sum(p.bytes_saved for p in some if p is not None) >= min(target, most)
    )
    largest = max(p.error for p in rows)
    assert sum(p.error for p in chosen) <= best * (1 + 2e-3) + 1e-6 * largest


def test_bits_move_to_where_the_error_is() -> None:
    rows = [
        *(row("deaf", bits, 100 * (32 - bits), 1e-3 * 4.0**-bits) for bits in (4, 6, 3, 2)),
        *(row("keen", bits, 100 * (32 - bits), 4.0**-bits) for bits in (4, 6, 3, 2)),
    ]
    assert [(p.targets[0], p.setting) for p in sized(rows, 0)] == [("deaf", 2), ("keen", 6)]


def test_what_trades_time_stays_as_asked_for() -> None:
    fast = [
        Proposal(("a",), "quantize", "integer", bytes_saved=90, cost_saved=5.0, error=0.5),
        Proposal(("a",), "quantize", "float", bytes_saved=80, error=0.1),
    ]
    assert not is_graded(fast)
    assert sized(fast, 0) == fast[:1]


def test_where_so_much_cannot_be_saved_the_most_is() -> None:
    rows = [row("a", 4, 50, 0.1), row("a", 2, 60, 0.5), row("b", 4, 50, 0.1)]
    assert sized(rows, 10**9) == [rows[1], rows[2]]


@pytest.mark.parametrize("error", [np.inf, 1e9])
def test_a_boundless_error_is_taken_last(error: float) -> None:
    rows = [
        *(row("a", 4, 50, error), row("a", 8, 40, 1e-6)),
        *(row("b", 4, 50, 1e-3), row("b", 2, 60, 1e-2)),
    ]
    assert sized(rows, 0) == [rows[1], rows[3]]


def test_last_resorts_are_taken_where_they_are_asked_for() -> None:
    last = Proposal(("a",), "share", 3, {"last_resort": True}, bytes_saved=90, error=0.1)
    rows = [row("a", 16, 80, 0.01), last, row("b", 16, 80, 0.01), row("b", 8, 85, 0.02)]
    assert [p.setting for p in sized(rows, 15)] == [16, 8]
    assert [p.setting for p in sized(rows, 15, last_resorts=True)] == [3, 8]
    assert [p.setting for p in within([row("a", 16, 80, 0.01), last], 1.0)] == [16]
