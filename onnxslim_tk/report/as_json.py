"""A report as strict JSON."""

import json
import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from onnxslim_tk.errors import OnnxSlimError
from onnxslim_tk.plan.plan import plan_data
from onnxslim_tk.report.outcome import Report
from onnxslim_tk.writing import replacing

FORMAT: Final = 1
"""Goes up when a key changes its meaning or goes away; new keys may come without."""


def report_data(report: Report) -> dict[str, Any]:
    """The report as plain data, ``holds`` included; the plan as its own file has it."""
    data = {field.name: getattr(report, field.name) for field in fields(report)}
    data["plan"] = plan_data(report.plan)
    plain_data: dict[str, Any] = plain({"format": FORMAT, "holds": report.holds, **data})
    return plain_data


def plain(value: Any) -> Any:
    """``value`` as what strict JSON can hold.

    Dataclasses and mappings become objects, sequences and arrays lists, paths text. JSON has
    neither NaN nor infinity: they become null and the texts "inf" and "-inf". Raises TypeError
    for anything else.
    """
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            if math.isfinite(value):
                return float(value)
            return None if math.isnan(value) else ("inf" if value > 0 else "-inf")
        case np.generic():
            return plain(value.item())
        case np.ndarray():
            return plain(value.tolist())
        case Mapping():
            return {str(key): plain(item) for key, item in value.items()}
        case list() | tuple():
            return [plain(item) for item in value]
        case Path():
            return str(value)
    if is_dataclass(value):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    raise TypeError(f"JSON cannot hold a {type(value).__name__}")


def json_text(data: Any) -> str:
    """``data`` as indented JSON that ends in a line break."""
    return json.dumps(plain(data), indent=1, allow_nan=False) + "\n"


def write_report(report: Report, path: Path) -> None:
    """Write the report as JSON; raises OnnxSlimError where the file can't be written."""
    try:
        with replacing(path) as file:
            file.write(json_text(report_data(report)).encode())
    except OSError as error:
        raise OnnxSlimError(f"report: {path} cannot be written: {error.strerror}") from error
