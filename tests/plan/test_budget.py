import math
from dataclasses import replace
from typing import Any

import pytest

from onnxslim_tk.errors import RecipeError
from onnxslim_tk.measure.fidelity import OutputFidelity
from onnxslim_tk.measure.kinds import OutputKind
from onnxslim_tk.measure.metrics import Drop
from onnxslim_tk.plan.budget import DEFAULT_LIMITS, Budget, Check, verdict

GOOD = OutputFidelity(
    name="y",
    kind="classes",
    sqnr_db=30.0,
    cosine=0.99,
    top1_agreement=1.0,
    sequence_agreement=None,
    worst_slice=None,
    collapsed_slices=(),
    non_finite=False,
    max_abs_error=0.1,
    shape_mismatches=0,
)


def drop(value: float, low: float, high: float, samples: int = 1000) -> Drop:
    return Drop(0.9, 0.9 - value, value, low, high, samples)


def holds(checks: tuple[Check, ...]) -> bool:
    return all(check.holds for check in checks)


def test_a_good_result_keeps_every_default() -> None:
    for kind in DEFAULT_LIMITS:
        agreement = 1.0 if kind in ("classes", "sequence") else None
        good = replace(GOOD, kind=kind, top1_agreement=agreement)
        assert holds(verdict([good], None, Budget(), 100))


@pytest.mark.parametrize(
    ("kind", "change", "figure"),
    [
        ("classes", {"sqnr_db": 5.9}, "SQNR dB"),
        ("classes", {"top1_agreement": 0.9}, "top-1 agreement"),
        ("sequence", {"top1_agreement": 0.93}, "top-1 agreement"),
        ("map", {"sqnr_db": 11.9}, "SQNR dB"),
        ("embedding", {"cosine": 0.94}, "cosine"),
        ("values", {"sqnr_db": 19.9}, "SQNR dB"),
        ("values", {"sqnr_db": math.nan}, "SQNR dB"),
    ],
)
def test_each_kind_of_output_has_its_limit(
    kind: OutputKind, change: dict[str, float], figure: str
) -> None:
    agreement = 1.0 if kind in ("classes", "sequence") else None
    plain: Any = {"kind": kind, "top1_agreement": agreement}
    bad = replace(GOOD, **(plain | change))
    failed = [check.figure for check in verdict([bad], None, Budget(), 100) if not check.holds]
    assert failed == [figure]


def test_collapsed_and_broken_outputs_never_pass() -> None:
    lenient = Budget(min_sqnr_db=-1e9, min_agreement=0, min_cosine=0, max_drop=1e9)
    collapsed = replace(GOOD, collapsed_slices=(3, 4, 5, 6, 7, 8))
    (check,) = [c for c in verdict([collapsed], drop(0, 0, 0), lenient, 99) if not c.holds]
    assert (check.figure, check.value, check.limit) == ("collapsed slices", 6, 0)
    assert check.note == "slices 3, 4, 5, 6, 7 of the last axis no longer vary"
    broken = replace(GOOD, non_finite=True)
    assert not holds(verdict([broken], drop(0, 0, 0), lenient, 99))


def test_what_the_user_says_comes_before_the_defaults() -> None:
    assert not holds(verdict([GOOD], None, Budget(min_sqnr_db=31), 100))
    assert holds(verdict([replace(GOOD, sqnr_db=3)], None, Budget(min_sqnr_db=2), 100))
    worse = replace(GOOD, top1_agreement=0.5)
    assert holds(verdict([worse], None, Budget(min_agreement=0.5), 100))
    # A limit that a user sets counts for every kind of output.
    assert not holds(verdict([GOOD], None, Budget(min_cosine=0.995), 100))


def test_a_metric_that_keeps_its_limit_takes_the_place_of_agreement() -> None:
    worse = replace(GOOD, top1_agreement=0.5)
    assert not holds(verdict([worse], None, Budget(), 100))
    assert holds(verdict([worse], drop(0.0, 0.0, 0.0), Budget(), 100))
    assert not holds(verdict([worse], drop(0.0, 0.0, 0.0), Budget(min_agreement=0.9), 100))
    # Within the limit by chance only: the outputs have to agree as well.
    assert not holds(verdict([worse], drop(0.012, 0.0, 0.024), Budget(), 100))
    assert holds(verdict([GOOD], drop(0.012, 0.0, 0.024), Budget(), 100))


def test_a_drop_fails_when_it_is_too_far_above_the_limit_for_chance() -> None:
    assert holds(verdict([GOOD], drop(0.01, 0.005, 0.015), Budget(), 100))
    assert holds(verdict([GOOD], drop(0.011, 0.005, 0.015), Budget(), 100))
    assert not holds(verdict([GOOD], drop(0.02, 0.011, 0.03), Budget(), 100))
    assert holds(verdict([GOOD], drop(0.02, 0.011, 0.03), Budget(max_drop=0.02), 100))
    assert holds(verdict([GOOD], drop(-0.2, -0.3, -0.1), Budget(max_drop=0), 100))
    lost = drop(math.inf, math.inf, math.inf)
    assert not holds(verdict([GOOD], lost, Budget(max_drop=0.5), 100))


def test_agreement_that_was_asked_for_needs_an_output_that_decides() -> None:
    plain = replace(GOOD, kind="values", top1_agreement=None)
    assert holds(verdict([plain], None, Budget(), 100))
    (*_, check) = verdict([plain], None, Budget(min_agreement=0.5), 100)
    assert not check.holds
    assert "no output decides between classes" in check.note


def test_no_agreement_asked_for_needs_no_output_that_decides() -> None:
    plain = replace(GOOD, kind="map", top1_agreement=None)
    checks = verdict([plain], None, Budget(min_agreement=0), 100)
    assert [check.figure for check in checks] == ["SQNR dB"]
    assert holds(checks)


def test_says_when_samples_are_too_few_to_see_the_drop() -> None:
    (*_, check) = verdict([GOOD], drop(0.0, -0.05, 0.05, 20), Budget(), 20)
    assert check.holds
    assert check.note == "20 samples tell the drop only to within [-0.0500, 0.0500]"
    (*_, check) = verdict([GOOD], drop(0.0, -0.01, 0.01), Budget(), 2000)
    assert check.note == ""


def test_agreement_fails_when_it_is_too_far_below_the_limit_for_chance() -> None:
    one_of_ten = replace(GOOD, top1_agreement=0.9)
    (*_, check) = verdict([one_of_ten], None, Budget(), 10)
    assert check.holds
    assert check.note == "10 samples: within 0.081 of the limit counts as held"
    assert not holds(verdict([replace(GOOD, top1_agreement=0.8)], None, Budget(), 10))
    assert not holds(verdict([one_of_ten], None, Budget(), 100))
    assert not holds(verdict([replace(GOOD, top1_agreement=0.0)], None, Budget(), 1))
    assert holds(verdict([GOOD], None, Budget(), 1))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_drop": -0.1}, "budget: max drop must be 0 or more, got -0.1"),
        ({"max_drop": math.nan}, "budget: max drop must be 0 or more, got nan"),
        ({"max_drop": math.inf}, "budget: max drop must be 0 or more, got inf"),
        ({"min_agreement": 1.5}, "budget: min agreement must be in [0, 1], got 1.5"),
        ({"min_cosine": -0.5}, "budget: min cosine must be in [0, 1], got -0.5"),
        ({"min_sqnr_db": math.nan}, "budget: min sqnr db must be finite, got nan"),
        (
            {"max_size": "10 parsecs"},
            "budget: max size must read like 10%, 300KB, 2MB or 123456, got '10 parsecs'",
        ),
        ({"max_macs": "70"}, "budget: max macs must read like 70%, got '70'"),
        ({"max_latency": "0%"}, "budget: max latency must read like 70%, got '0%'"),
        ({"max_params": "2MB"}, "budget: max params must read like 70%, got '2MB'"),
        ({"max_size": 0}, "budget: max size must read like 10%, 300KB, 2MB or 123456, got 0"),
    ],
)
def test_limits_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        Budget(**settings)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("text", "limit"),
    [("10%", 1000), ("2.5 %", 250), ("300KB", 300_000), ("1.5mb", 1_500_000), (4096, 4096)],
)
def test_a_size_is_read_in_bytes_units_or_parts_of_the_original(
    text: int | str, limit: int
) -> None:
    assert Budget(max_size=text).most_bytes(10_000) == limit
    assert Budget().most_bytes(10_000) is None


def test_who_limits_the_size_takes_the_loss() -> None:
    bad = replace(GOOD, sqnr_db=1.0, top1_agreement=0.5)
    assert not holds(verdict([bad], None, Budget(), 100))
    assert holds(verdict([bad], None, Budget(max_size="10%"), 100))
    assert not holds(verdict([bad], None, Budget(max_size="10%", min_sqnr_db=3.0), 100))


@pytest.mark.parametrize(
    ("figure", "value", "limit", "holds", "clear"),
    [
        ("SQNR dB", 13.9, 12.0, True, False),
        ("SQNR dB", 14.0, 12.0, True, True),
        ("top-1 agreement", 0.92, 0.93, True, False),
        ("top-1 agreement", 0.93, 0.93, True, True),
        ("drop", 0.011, 0.01, True, False),
        ("drop", 0.01, 0.01, True, True),
        ("non-finite values", 1.0, 0.0, False, False),
    ],
)
def test_what_holds_by_chance_or_a_hair_is_not_clear(
    figure: str, value: float, limit: float, holds: bool, clear: bool
) -> None:
    assert Check("y", figure, value, limit, holds).is_clear == clear


def test_limits_of_work_are_shares() -> None:
    budget = Budget(max_macs="70%", max_params="12.5 %")
    assert budget.shares() == {"macs": 0.7, "parameters": 0.125}
    assert not budget.has_limits
    assert replace(budget, min_agreement=0.9).has_limits
