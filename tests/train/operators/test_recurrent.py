import numpy as np
import pytest

pytest.importorskip("torch", reason="the extra train isn't installed")

from tests.train.cases import Array, floats, gradient_is_right, same_as_the_runtime

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
DIRECTIONS = {"forward": 1, "reverse": 1, "bidirectional": 2}


def weights(name: str, directions: int) -> dict[str, Array]:
    rows = 3 * GATES[name]
    return {
        "w": floats(directions, rows, 2, seed=1),
        "r": floats(directions, rows, 3, seed=2),
        "b": floats(directions, 2 * rows, seed=3),
    }


@pytest.mark.parametrize("name", GATES)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_all_directions_with_and_without_all_that_is_optional(name: str, direction: str) -> None:
    count = DIRECTIONS[direction]
    call = f'{name}<hidden_size=3, direction="{direction}">'
    given = weights(name, count)
    x = {"x": floats(4, 2, 2)}
    same_as_the_runtime(f"y, z = {call}(x, w, r)", x, {k: given[k] for k in "wr"})
    states = {"h": floats(count, 2, 3, seed=4)}
    more = ", h"
    if name == "LSTM":
        states["c"], more = floats(count, 2, 3, seed=5), ", h, c"
    lengths = {"n": np.array([4, 2], np.int32)}
    text = f"y, z = {call}(x, w, r, b, n{more})"
    same_as_the_runtime(text, {**x, **states}, {**given, **lengths})
    gradient_is_right(text, {**x, **given, **states}, lengths)


@pytest.mark.parametrize("after", [0, 1])
def test_gru_resets_before_or_after_the_product(after: int) -> None:
    text = f"y, z = GRU<hidden_size=3, linear_before_reset={after}>(x, w, r, b)"
    same_as_the_runtime(text, {"x": floats(4, 2, 2)}, weights("GRU", 1))
    gradient_is_right(text, {"x": floats(3, 1, 2), **weights("GRU", 1)})


def test_peepholes() -> None:
    given = {**weights("LSTM", 1), "p": floats(1, 9, seed=6)}
    text = 'y, z = LSTM<hidden_size=3>(x, w, r, b, "", "", "", p)'
    same_as_the_runtime(text, {"x": floats(4, 2, 2)}, given)
    gradient_is_right(text, {"x": floats(3, 1, 2), **given})


def test_other_activations() -> None:
    text = 'y, z = RNN<hidden_size=3, activations=["Relu"]>(x, w, r, b)'
    same_as_the_runtime(text, {"x": floats(4, 2, 2)}, weights("RNN", 1))
    text = 'y, z = LSTM<hidden_size=3, activations=["Sigmoid", "Softsign", "Tanh"]>(x, w, r, b)'
    same_as_the_runtime(text, {"x": floats(4, 2, 2)}, weights("LSTM", 1))


def test_a_clipped_cell_runs_without_a_gradient() -> None:
    text = "y, z = LSTM<hidden_size=3, clip=0.5>(x, w, r, b)"
    same_as_the_runtime(text, {"x": floats(4, 2, 2)}, weights("LSTM", 1), detached=True)
