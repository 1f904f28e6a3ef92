from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxslim_tk.errors import RecipeError, TrainingError
from onnxslim_tk.plan.augmentation import AUGMENTATIONS, Flip, Noise, Replace, Shift, augmented
from onnxslim_tk.plan.training import Losses, Training, training_data, training_of

IMAGE = np.random.default_rng(0).standard_normal((1, 3, 8, 9)).astype(np.float32)
TOKENS = np.arange(12).reshape(1, 12)


@given(name=st.sampled_from(sorted(AUGMENTATIONS)), seed=st.integers(0, 99))
def test_a_varied_sample_keeps_its_shape_and_type(name: str, seed: int) -> None:
    feed: dict[str, Any] = {"x": IMAGE, "ids": TOKENS}
    before = {key: value.copy() for key, value in feed.items()}
    varied = augmented(feed, [AUGMENTATIONS[name]()], np.random.default_rng(seed))
    for key, value in before.items():
        assert varied[key].shape == value.shape
        assert varied[key].dtype == value.dtype
        np.testing.assert_array_equal(feed[key], value)
    again = augmented(feed, [AUGMENTATIONS[name]()], np.random.default_rng(seed))
    np.testing.assert_array_equal(varied["x"], again["x"])


@pytest.mark.parametrize("name", sorted(AUGMENTATIONS))
def test_samples_do_vary(name: str) -> None:
    key, value = ("ids", TOKENS) if name == "replace" else ("x", IMAGE)
    rng = np.random.default_rng(0)
    found = [augmented({key: value}, [AUGMENTATIONS[name]()], rng)[key] for _ in range(12)]
    assert len({array.tobytes() for array in found}) > 1


def test_each_acts_on_the_inputs_of_its_kind() -> None:
    feed: dict[str, Any] = {"x": IMAGE, "y": IMAGE, "ids": TOKENS}
    rng = np.random.default_rng(0)
    noisy = augmented(feed, [Noise(1.0, input="y")], rng)
    assert (noisy["x"] == IMAGE).all()
    assert (noisy["y"] != IMAGE).any()
    replaced = augmented(feed, [Replace(0.9)], rng)
    assert (replaced["x"] == IMAGE).all()
    assert (replaced["ids"] != TOKENS).any()
    assert set(replaced["ids"].ravel()) <= set(TOKENS.ravel())
    with pytest.raises(RecipeError, match="has no input 'z'"):
        augmented(feed, [Noise(input="z")], rng)
    with pytest.raises(RecipeError, match="holds no floats"):
        augmented(feed, [Noise(input="ids")], rng)


def test_what_comes_in_by_a_shift_repeats_the_edge() -> None:
    moved = Shift(3, axes=(-1,))(IMAGE, np.random.default_rng(1))
    assert {tuple(c) for c in moved[0, 0].T.tolist()} <= {tuple(c) for c in IMAGE[0, 0].T.tolist()}


def test_settings_out_of_range_are_refused() -> None:
    for kind, settings in [("flip", {"chance": 2}), ("noise", {"deviation": -1})]:
        with pytest.raises(RecipeError, match=f"{kind}: "):
            AUGMENTATIONS[kind](**settings)
    with pytest.raises(RecipeError, match="has no axis 7"):
        Flip(axis=7, chance=1)(IMAGE, np.random.default_rng(0))


def test_a_training_is_read_as_it_is_written() -> None:
    data = {
        "steps": 5,
        "losses": {"temperature": 2, "match": "position"},
        "augment": ["flip", {"shift": 3}, {"noise": {"deviation": 0.2, "input": "x"}}],
    }
    found = training_of(data, "test")
    assert found.schedule.steps == 5
    assert found.losses == Losses(temperature=2, match="position")
    assert list(found.augment) == [Flip(), Shift(3), Noise(0.2, "x")]
    assert training_of(training_data(found), "test") == found
    assert training_of({}, "test") == Training()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ([], "must be a mapping"),
        ({"rates": 1}, "there is no setting 'rates'"),
        ({"losses": {"soft": "much"}}, "losses: soft"),
        ({"losses": {"match": "luck"}}, "match"),
        ({"losses": {"alpha": 2}}, "alpha must be in"),
        ({"augment": {"flip": 1}}, "must be a list"),
        ({"augment": ["blur"]}, "no augmentation 'blur'"),
        ({"augment": [{"shift": {"far": 1}}]}, "no setting 'far'"),
    ],
)
def test_a_wrong_training_is_told_in_one_sentence(data: Any, words: str) -> None:
    with pytest.raises((RecipeError, TrainingError), match=words):
        training_of(data, "test")
