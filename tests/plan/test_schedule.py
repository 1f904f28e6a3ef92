from typing import Any

import numpy as np
import pytest

from onnxslim_tk.errors import TrainingError
from onnxslim_tk.plan.schedule import Schedule


def test_the_rate_rises_and_falls() -> None:
    schedule = Schedule(rate=1.0, warm_up=0.1)
    rates = [schedule.rate_at(k / 100) for k in range(101)]
    assert np.argmax(rates) == 10
    assert max(rates) == pytest.approx(1)
    assert (np.diff(rates[:11]) > 0).all()
    assert (np.diff(rates[10:]) < 0).all()
    assert rates[0] > 0
    assert rates[-1] < 0.02


def test_epochs_count_in_samples() -> None:
    assert Schedule(steps=7).length(100) == 7
    assert Schedule(epochs=2.5, batch=8).length(20) == 7
    assert Schedule(batch=8).epoch_steps(20) == 3


@pytest.mark.parametrize(
    "settings",
    [
        {"steps": 0},
        {"rate": 0.0},
        {"average": 1.0},
        {"clip": float("inf")},
        {"minutes": 0.0},
        {"epochs": -1.0},
        {"l1": -0.1},
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(TrainingError, match=f"train: {next(iter(settings))} must be"):
        Schedule(**settings)
