import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest

from onnxslim_tk import demo
from onnxslim_tk.errors import OnnxSlimError
from onnxslim_tk.pipeline import Options, validate
from onnxslim_tk.report.as_json import json_text, plain, report_data, write_report
from onnxslim_tk.report.outcome import Report


@dataclass(frozen=True)
class Inner:
    values: tuple[float, ...]
    place: Path


def strict(text: str) -> Any:
    def refuse(constant: str) -> NoReturn:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


@pytest.fixture(scope="module")
def report() -> Report:
    return validate(demo.MODEL, demo.MODEL, Options(calibration=demo.TEST, limit=8))


def test_what_json_lacks_becomes_null_or_text() -> None:
    data = {"n": Inner((float("nan"), float("inf"), -np.inf, 1.5), Path("a")), 3: np.float32(2)}
    assert strict(json_text(data)) == {
        "n": {"values": [None, "inf", "-inf", 1.5], "place": "a"},
        "3": 2.0,
    }


def test_numpy_s_numbers_become_python_s() -> None:
    found = plain([np.int64(3), np.bool_(True), np.arange(2), np.float64("nan")])
    assert found == [3, True, [0, 1], None]
    assert [type(value) for value in found[:2]] == [int, bool]


def test_anything_else_is_refused() -> None:
    with pytest.raises(TypeError, match="cannot hold a set"):
        plain({"names": {"a"}})


def test_a_report_keeps_every_field(report: Report) -> None:
    data = report_data(report)
    assert data["format"] == 1
    assert data["holds"] is True
    assert set(Report.__dataclass_fields__) <= set(data)
    assert data["plan"]["recipe"]["name"] == "none"


def test_a_file_holds_the_same_data(report: Report, tmp_path: Path) -> None:
    write_report(report, tmp_path / "report.json")
    assert strict((tmp_path / "report.json").read_text(encoding="utf-8")) == report_data(report)


def test_a_place_that_cannot_be_written_is_named(report: Report, tmp_path: Path) -> None:
    with pytest.raises(OnnxSlimError, match=r"report: .*none.* cannot be written"):
        write_report(report, tmp_path / "none" / "report.json")
