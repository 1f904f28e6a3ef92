from pathlib import Path

import pytest

from onnxslim_tk.plan.targets import Work
from onnxslim_tk.report.floats import Floating
from onnxslim_tk.report.outcome import Report
from onnxslim_tk.report.summary import summarize
from tests.models import SLOW_FLOATS, model_of
from tests.report.test_integers import BRANCHES, CONV, HEAD, IMAGES, report_of


def rows(report: Report) -> dict[tuple[str, str], Floating]:
    return {(row.kind, row.reason): row for row in report.floats}


def test_says_what_each_operator_in_float_takes_by_the_table(tmp_path: Path) -> None:
    report = report_of(model_of(BRANCHES, CONV), IMAGES, tmp_path)
    found = rows(report)
    small = found["Conv", "fewer than 64 weights"]
    assert small.operators == 1
    work = Work("Conv", 16 * 100, 16 * 100, weights=16, channels=(1, 16), groups=16)
    assert small.microseconds == pytest.approx(SLOW_FLOATS.float_time(work))
    product = found["MatMul", "the product of two activations"]
    assert product.microseconds == pytest.approx(
        SLOW_FLOATS.float_time(Work("MatMul", 16 * 12 * 12, 16 * 12 * 12 * 12))
    )
    assert found["ConvTranspose", "the runtime has no integer kernel for it"].microseconds is None
    assert ("Conv", "") not in found
    assert not any(kind == "Relu" for kind, _ in found)
    assert summarize(report).floats == report.floats


def test_what_stands_between_floats_is_told_from_what_has_no_kernel(tmp_path: Path) -> None:
    text = f"""{HEAD} g (float[N, 4, 12, 12] x) => (float[N, 16, 10, 10] y) {{
        e = Erf(x) m = Sigmoid(e) c = Conv(m, w1) y = Relu(c)
    }}"""
    report = report_of(model_of(text, CONV), IMAGES, tmp_path, "[{quantize: {activations: false}}]")
    found = rows(report)
    assert found["Erf", "the runtime has no integer kernel for it"].microseconds is None
    alone = "it stands between floats: integers would have to be made for it alone"
    assert (found["Sigmoid", alone].microseconds or 0) > 0
    times = [row.microseconds or 0.0 for row in report.floats]
    assert times == sorted(times, reverse=True)
