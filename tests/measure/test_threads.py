import threading
import time

import pytest

from onnxslim_tk.errors import RecipeError
from onnxslim_tk.measure.threads import Threads


@pytest.mark.parametrize("jobs", [1, 2, -1])
def test_results_come_in_the_order_of_the_items(jobs: int) -> None:
    def slow_first(item: int) -> int:
        time.sleep(0.02 if item == 0 else 0)
        return item * item

    assert list(Threads(jobs).each(slow_first, range(6))) == [0, 1, 4, 9, 16, 25]


def test_calls_run_side_by_side() -> None:
    together = threading.Barrier(2, timeout=20)
    assert sorted(Threads(2).each(lambda _: together.wait(), [0, 1])) == [0, 1]


@pytest.mark.parametrize("jobs", [1, 3])
def test_an_error_of_a_call_arrives_as_it_is(jobs: int) -> None:
    def call(item: int) -> int:
        raise RecipeError(f"item {item}")

    with pytest.raises(RecipeError, match="item 0"):
        list(Threads(jobs).each(call, [0, 0]))


def test_no_jobs_at_all_are_refused() -> None:
    with pytest.raises(RecipeError, match="jobs: must be 1 or more, or -1"):
        Threads(0)
