from typing import Any

import pytest

from onnxslim_tk.errors import TrainingError
from onnxslim_tk.plan.cuts import Cuts


def test_rounds_end_at_what_was_asked_for() -> None:
    targets = Cuts(sparsity=0.8, keep=0.25, rounds=3).targets()
    assert targets[-1] == {"channels": pytest.approx(0.25), "sparsify": pytest.approx(0.8)}
    sparsities = [target["sparsify"] for target in targets]
    steps = [b - a for a, b in zip([0.0, *sparsities], sparsities, strict=False)]
    assert steps == sorted(steps, reverse=True)
    shares = [target["channels"] for target in targets]
    assert shares[1] / shares[0] == pytest.approx(shares[2] / shares[1])


def test_a_stretch_may_come_before_the_first_cut() -> None:
    assert Cuts(sparsity=0.5, first=False).targets() == [{}, {"sparsify": 0.5}]
    assert Cuts().targets() == [{}]


@pytest.mark.parametrize(
    "settings", [{"sparsity": 1.0}, {"keep": 0.0}, {"rounds": 0}, {"rounds": 2}]
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(TrainingError, match=next(iter(settings))):
        Cuts(**settings)
