from dataclasses import replace

import numpy as np
import pytest

from onnxslim_tk.measure.observe import observe
from onnxslim_tk.plan.proposal import Observable
from onnxslim_tk.recover.held_out import held_out
from tests.models import CONTEXT, mlp, opened
from tests.rows import TOKENS

FEEDS = [{"x": TOKENS["x"][k : k + 10]} for k in range(0, 200, 10)]
WANTED: frozenset[Observable] = frozenset({"mean", "covariance"})


def test_the_rest_shows_nothing_of_what_is_held_out() -> None:
    model = opened(mlp())
    loud = [{"x": 1e6 * feed["x"]} for feed in FEEDS[:5]] + FEEDS[5:]
    context = replace(CONTEXT, feeds=loud, statistics=observe(model, loud, WANTED, 0))
    apart = held_out(model, context, WANTED)
    assert apart is not None
    assert not apart.context.feeds
    for found, feeds in ((apart.shown, loud[:5]), (apart.context.statistics, FEEDS[5:])):
        assert found is not None
        for key, moments in observe(model, feeds, WANTED, 0).moments.items():
            np.testing.assert_array_equal(moments.mean, found.moments[key].mean)


@pytest.mark.parametrize("count", [0, 1])
def test_few_feeds_leave_nothing_to_hold_out(count: int) -> None:
    model = opened(mlp())
    statistics = observe(model, FEEDS[:1], WANTED, 0)
    context = replace(CONTEXT, feeds=FEEDS[:count], statistics=statistics)
    assert held_out(model, context, WANTED) is None
