from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxslim_tk.plan import policy
from onnxslim_tk.plan.knapsack import alternatives
from onnxslim_tk.plan.policy import asked_for, rescaled, trimmed, within
from onnxslim_tk.plan.proposal import Proposal


def row(
    target: str,
    method: str = "m",
    setting: int = 0,
    saved: int = 100,
    error: float = 0.1,
    cost: float = 0.0,
) -> Proposal:
    return Proposal((target,), method, setting, bytes_saved=saved, cost_saved=cost, error=error)


def gain(chosen: list[Proposal], rows: list[Proposal]) -> float:
    total_bytes = sum(max(p.bytes_saved, 0) for p in rows) or 1
    total_cost = sum(max(p.cost_saved, 0.0) for p in rows) or 1.0
    # Bytes that a row costs don't count where it saves time.
    saved = [max(p.bytes_saved, 0) if p.cost_saved > 0 else p.bytes_saved for p in chosen]
    gains = [
        s / total_bytes + p.cost_saved / total_cost for s, p in zip(saved, chosen, strict=True)
    ]
    # What makes no error costs nothing that counts.
    return sum(g if p.error else max(g, 0.0) for g, p in zip(gains, chosen, strict=True))


def compatible(chosen: list[Proposal]) -> bool:
    """At most one setting for the targets of a row, and one method for any target."""
    rows = [(p.method, p.targets) for p in chosen]
    methods = {(target, p.method) for p in chosen for target in p.targets}
    return len(rows) == len(set(rows)) and len(methods) == len({target for target, _ in methods})


@st.composite
def tables(draw: st.DrawFn) -> list[Proposal]:
    rows = []
    for target in "abc":
        for method in draw(st.sampled_from([["m"], ["n"], ["m", "n"]])):
            for setting in range(draw(st.integers(1, 2))):
                saved, cost = draw(st.integers(-50, 1000)), draw(st.integers(0, 1000))
                error = draw(st.sampled_from([0.0, 0.01, 0.1, 0.2, 0.5]))
                targets = (target, "d") if draw(st.booleans()) else (target,)
                rows.append(
                    Proposal(targets, method, setting, {}, saved, cost_saved=cost, error=error)
                )
    return rows


@given(tables(), st.sampled_from([0.0, 0.05, 0.3, 1.0]))
@settings(max_examples=60, deadline=None)
def test_saves_as_much_as_the_best_of_all_choices(rows: list[Proposal], tolerance: float) -> None:
    chosen = within(rows, tolerance)
    assert compatible(chosen)
    assert sum(p.error for p in chosen) <= tolerance + 1e-6
    fitting = [p for p in rows if p.error <= tolerance]
    best = 0.0
    for mask in product([False, True], repeat=len(fitting)):
        some = [p for p, taken in zip(fitting, mask, strict=True) if taken]
        if compatible(some) and sum(p.error for p in some) <= tolerance:
            best = max(best, gain(some, fitting))
    assert gain(chosen, fitting) >= best * (1 - 2e-3) - 1e-6


def test_takes_what_was_asked_for_at_every_target() -> None:
    rows = [row("a", setting=1), row("a", setting=2, saved=999), row("b", saved=-5), row("c")]
    assert asked_for(rows) == [rows[0], rows[2], rows[3]]
    assert asked_for([]) == []


def test_of_methods_that_share_a_target_the_more_saving_one_is_taken() -> None:
    rows = [
        Proposal(("a", "b"), "wide", 1, bytes_saved=150),
        row("a", "narrow", saved=100),
        row("b", "narrow", saved=100),
        row("c", "narrow", saved=1),
    ]
    assert asked_for(rows) == rows[1:]
    rows[0] = Proposal(("a", "b"), "wide", 1, bytes_saved=250)
    assert asked_for(rows) == [rows[0], rows[3]]


def test_time_saved_is_worth_the_bytes_of_its_nodes() -> None:
    rows = [row("a", "m", saved=-330, cost=100.0), row("a", "n", saved=-330), row("b", saved=-1)]
    assert asked_for(rows) == rows[:1]


def test_a_milder_setting_is_taken_where_the_asked_one_does_not_fit() -> None:
    rows = [row("a", setting=1, saved=100, error=0.5), row("a", setting=2, saved=60, error=0.1)]
    assert within(rows, 1.0) == rows[:1]
    assert within(rows, 0.2) == rows[1:]
    assert within(rows, 0.0) == []


@pytest.mark.parametrize("error", [float("inf"), float("nan"), 1e9])
def test_rows_of_boundless_error_are_left_without_harm_to_others(error: float) -> None:
    rows = [row("a", error=error, saved=10**6), row("b", error=1e-4), row("c", error=0.0)]
    assert within(rows, 1e-3) == rows[1:]
    assert within(rows, 0.0) == rows[2:]


def test_latency_counts_as_much_as_bytes() -> None:
    # Shares of all savings: 10 % of the bytes against 90 % of the time.
    rows = [row("a", saved=900, cost=100.0), row("b", saved=100, cost=900.0)]
    assert within(rows, 0.1) in ([rows[0]], [rows[1]])
    rows[1] = row("b", saved=100, cost=1900.0)
    assert within(rows, 0.1) == [rows[1]]


def test_the_greedy_way_keeps_to_the_same_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy, "cheapest", lambda *a, **k: None)
    rows = [
        row("a", setting=1, saved=100, error=0.1),
        row("a", setting=2, saved=90, error=0.05),
        row("a", "n", saved=80, error=0.0),
        row("b", saved=70, error=0.3),
        row("c", saved=60, error=0.2),
    ]
    assert within(rows, 0.35) == [rows[0], rows[4]]


def test_groups_hold_the_settings_of_one_method_on_one_set_of_targets() -> None:
    rows = [row("a", setting=1), row("b"), row("a", setting=2), row("a", "n")]
    assert alternatives(rows) == [[rows[0], rows[2]], [rows[1]], [rows[3]]]


def test_measured_errors_scale_the_milder_settings_too() -> None:
    rows = [
        row("a", setting=1, error=0.4),
        row("b", error=0.3),
        row("a", setting=2, error=0.1),
        row("c", error=0.0),
    ]
    found = rescaled(rows, {("m", ("a",), 1): 0.02, ("m", ("c",), 0): 0.5})
    errors = {(p.targets[0], p.setting): p.error for p in found}
    expected = {("a", 1): 0.02, ("a", 2): 0.005, ("b", 0): 0.3, ("c", 0): 0.5}
    assert errors == pytest.approx(expected)
    assert [(p.targets, p.setting) for p in found if not p.measured] == [(("a",), 2), (("b",), 0)]


def test_a_row_whose_error_is_out_of_proportion_takes_its_milder_setting() -> None:
    rows = [
        row("a", setting=0, error=0.02, cost=1.0),
        row("a", setting=1, error=0.0001),
        row("b", setting=0, error=0.001, cost=9.0),
        row("b", setting=1, error=0.0001),
        row("c", error=0.002, cost=9.0),
    ]
    chosen = {p.targets[0]: p.setting for p in trimmed(rows)}
    assert chosen == {"a": 1, "b": 0, "c": 0}


def test_nothing_is_given_up_where_all_is_near_or_dear() -> None:
    near = [row("a", setting=0, error=1e-4, cost=1.0), row("a", setting=1, error=1e-6)]
    assert [p.setting for p in trimmed(near)] == [0]
    dear = [row("a", setting=0, error=0.02, cost=1.0), row("a", setting=1, error=0.0001)]
    assert [p.setting for p in trimmed(dear)] == [0]


def test_a_milder_setting_is_not_blamed_for_what_was_measured_of_the_other() -> None:
    expected = [
        row("a", setting=0, error=0.002, cost=1.0),
        row("a", setting=1, error=0.001),
        row("b", error=0.001, cost=19.0),
    ]
    scaled = rescaled(expected, {("m", ("a",), 0): 0.1})
    assert scaled[1].error == pytest.approx(0.05)
    known = rescaled(expected, {("m", ("a",), 0): 0.1, ("m", ("a",), 1): 0.003})
    assert known[1].error == 0.003
    assert {p.targets[0]: p.setting for p in trimmed(known)} == {"a": 1, "b": 0}
