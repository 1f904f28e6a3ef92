import pytest

from onnxslim_tk.plan.limiting import least_error
from onnxslim_tk.plan.proposal import Proposal


def row(name: str, method: str, setting: float, macs: int, error: float) -> Proposal:
    return Proposal(
        (name,),
        method,
        setting,
        bytes_saved=4 * macs,
        macs_saved=macs,
        cost_saved=macs / 10,
        error=error,
    )


ROWS = [
    row("a", "channels", 0.5, 50, 0.30),
    row("a", "channels", 0.75, 25, 0.05),
    row("a", "factorize", 0.5, 50, 0.10),
    row("b", "channels", 0.5, 40, 0.20),
    row("b", "blocks", 0.0, 80, 0.90),
]


@pytest.mark.parametrize(
    ("needs", "chosen"),
    [
        ({"macs": 20}, [("a", "channels", 0.75)]),
        ({"macs": 50}, [("a", "factorize", 0.5)]),
        ({"macs": 65}, [("a", "channels", 0.75), ("b", "channels", 0.5)]),
        ({"macs": 90}, [("a", "factorize", 0.5), ("b", "channels", 0.5)]),
        ({"macs": 20, "latency": 9.0}, [("a", "factorize", 0.5), ("b", "channels", 0.5)]),
        ({"parameters": 130}, [("a", "factorize", 0.5), ("b", "blocks", 0.0)]),
        ({"macs": 0}, []),
    ],
)
def test_the_least_error_that_saves_enough_is_taken_over_all_methods(
    needs: dict[str, float], chosen: list[tuple[str, str, float]]
) -> None:
    found = least_error(ROWS, needs)
    assert found is not None
    assert [(r.targets[0], r.method, r.setting) for r in found] == chosen


def test_what_no_rows_save_is_said() -> None:
    assert least_error(ROWS, {"macs": 131}) is None
    assert least_error([], {"macs": 1}) is None
