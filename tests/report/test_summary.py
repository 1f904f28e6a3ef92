from dataclasses import replace
from math import nan

import pytest

from onnxslim_tk import demo
from onnxslim_tk.measure.validate import LayerError
from onnxslim_tk.packing import PackedTensor
from onnxslim_tk.pipeline import Options, validate
from onnxslim_tk.plan.budget import Check
from onnxslim_tk.plan.plan import Plan, StagePlan
from onnxslim_tk.plan.proposal import Proposal, Refusal
from onnxslim_tk.plan.recipe import Recipe
from onnxslim_tk.report.outcome import Report
from onnxslim_tk.report.summary import done as summed_up
from onnxslim_tk.report.summary import packing, refusals, summarize


@pytest.fixture(scope="module")
def report() -> Report:
    return validate(demo.MODEL, demo.MODEL, Options(calibration=demo.TEST, limit=8))


def plan_of(*stages: StagePlan) -> Plan:
    return Plan("", Recipe("r", ()), 0, stages)


def test_figures_stand_side_by_side(report: Report) -> None:
    figures = {figure.name: figure for figure in summarize(report).figures}
    assert list(figures)[:4] == ["file bytes", "gzip bytes", "parameters", "MACs"]
    assert figures["file bytes"].original == demo.MODEL.stat().st_size
    assert figures["file bytes"].ratio == figures["MACs"].ratio == 1.0


def test_unknown_figures_have_no_ratio(report: Report) -> None:
    original = replace(report.validation.original, macs=None)
    validation = replace(report.validation, original=original, latency=None)
    found = {f.name: f for f in summarize(replace(report, validation=validation)).figures}
    assert found["MACs"].ratio is None
    assert found["latency ms"].ratio is found["load time"].ratio is None


@pytest.mark.parametrize(
    ("checks", "verdict"),
    [
        ((), "not judged"),
        ((Check("y", "SQNR dB", 30, 20, True),), "holds"),
        ((Check("y", "SQNR dB", 30, 20, True), Check("y", "cosine", 0.5, 0.9, False)), "broken"),
    ],
)
def test_the_verdict_follows_the_checks(
    report: Report, checks: tuple[Check, ...], verdict: str
) -> None:
    assert summarize(replace(report, checks=checks)).verdict == verdict


def test_layers_come_worst_first(report: Report) -> None:
    ratios = (30.0, 10.0, nan, 40.0, 20.0, 50.0, 60.0)
    layers = tuple(LayerError(str(k), "Conv", ratio) for k, ratio in enumerate(ratios))
    found = summarize(replace(report, validation=replace(report.validation, layers=layers)))
    assert [layer.layer for layer in found.worst_layers] == ["2", "1", "4", "0", "3"]


def test_rows_are_added_up_by_stage_and_method() -> None:
    rows = (
        Proposal(("a",), "share", 16, bytes_saved=10, error=0.1),
        Proposal(("b",), "share", 16, bytes_saved=5, macs_saved=3, error=0.3),
        Proposal(("a",), "quantize", 8, bytes_saved=-1),
    )
    (share, quantize) = summed_up(plan_of(StagePlan("all", rows)))
    assert (share.rows, share.bytes_saved, share.macs_saved, share.error) == (2, 15, 3, 0.3)
    assert (quantize.method, quantize.bytes_saved) == ("quantize", -1)


def test_refusals_are_counted_by_reason() -> None:
    small = [Refusal(str(k), "share", "fewer than 512 weights") for k in range(5)]
    other = Refusal("x", "quantize", "quantized already")
    first, second = refusals(plan_of(StagePlan("s", (), (other, *small))))
    assert (first.method, first.layers, first.examples) == ("share", 5, ("0", "1", "2"))
    assert (second.reason, second.layers) == ("quantized already", 1)
    assert first.instead == second.instead == ""


def test_what_got_less_or_something_else_is_not_left_alone() -> None:
    slower = [Refusal(name, "quantize", "would run slower in integers") for name in "abc"]
    tidied = StagePlan("clean", (Proposal(("c",), "fuse", "scale", bytes_saved=4),))
    rows = (
        Proposal(("a",), "quantize", "weights", error=1e-5),
        Proposal(("b",), "share", 16, error=1e-2),
        Proposal(("b",), "quantize", "weights", error=1e-5),
    )
    found = refusals(plan_of(tidied, StagePlan("s", rows, tuple(slower))))
    assert {row.examples: row.instead for row in found} == {
        ("a",): "quantize weights",
        ("b",): "share 16, quantize weights",
        ("c",): "",
    }


def test_packing_is_added_up_by_encoding() -> None:
    rows = [
        PackedTensor("a", "codes-4", 100, 20),
        PackedTensor("b", "codes-4", 50, 10),
        PackedTensor("t", "tables", 0, 30),
        PackedTensor("c", "alias", 500, 2),
    ]
    alias, codes, tables = packing(rows)
    assert [alias.encoding, tables.encoding] == ["alias", "tables"]
    assert (codes.tensors, codes.bytes_before, codes.bytes_after) == (2, 150, 30)
