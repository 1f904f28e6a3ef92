import math
from typing import Any

import numpy as np
import pytest

from onnxslim_tk.errors import ModelError
from onnxslim_tk.measure.fidelity import Fidelity, OutputFidelity, compare, primary_output
from onnxslim_tk.measure.kinds import OutputKind
from onnxslim_tk.measure.runtime import Feed
from onnxslim_tk.measure.samples import Samples

RNG = np.random.default_rng(0)


def judge(
    pairs: list[tuple[Any, Any]], kind: OutputKind | None = None, name: str = "y"
) -> OutputFidelity:
    fidelity = Fidelity({name: kind} if kind else None)
    for reference, value in pairs:
        fidelity.update(name, np.asarray(reference), np.asarray(value))
    (figures,) = fidelity.result()
    return figures


def normal(*shape: int) -> np.ndarray[Any, Any]:
    return RNG.normal(size=shape).astype(np.float32)


def test_identical_outputs_are_perfect() -> None:
    figures = judge([(x, x) for x in normal(5, 1, 10)])
    assert figures.cosine == pytest.approx(1.0)
    assert figures == OutputFidelity(
        name="y", kind="classes", sqnr_db=200.0, cosine=figures.cosine, top1_agreement=1.0,
        sequence_agreement=None, worst_slice=(0, 200.0), collapsed_slices=(), non_finite=False,
        max_abs_error=0.0, shape_mismatches=0,
    )  # fmt: skip


def test_noise_shows_as_a_ratio_over_all_samples() -> None:
    pairs = [([[3.0, 4.0]], [[3.0, 4.5]]), ([[0.0, 5.0]], [[0.0, 5.0]])]
    figures = judge(pairs)
    assert figures.sqnr_db == pytest.approx(10 * math.log10(50 / 0.25))
    assert figures.max_abs_error == 0.5
    expected = (9 + 18) / (5 * math.hypot(3, 4.5))
    assert figures.cosine == pytest.approx((expected + 1) / 2)


def test_finds_the_worst_slice_that_signals() -> None:
    reference = normal(20, 1, 4)
    reference[..., 3] *= 1e-9
    value = reference + np.array([0.01, 0.2, 0.01, 0.2], np.float32)
    worst = judge(list(zip(reference, value, strict=True))).worst_slice
    assert worst is not None
    assert worst[0] == 1
    energy = np.square(reference[..., 1].astype(float)).sum()
    assert worst[1] == pytest.approx(10 * math.log10(energy / (20 * 0.04)), abs=0.01)


def test_takes_channels_of_a_map_as_slices() -> None:
    reference = normal(3, 1, 4, 6, 5)
    value = reference.copy()
    value[:, :, 2] = 0.25
    figures = judge(list(zip(reference, value, strict=True)))
    assert figures.kind == "map"
    assert figures.collapsed_slices == (2,)
    assert figures.worst_slice is not None
    assert figures.worst_slice[0] == 2


@pytest.mark.parametrize("stuck", [0.0, 0.7, math.nan])
def test_finds_slices_that_stand_still(stuck: float) -> None:
    reference = normal(6, 1, 5)
    reference[..., 4] = 2.0
    reference[..., 0] *= 1e-4
    value = reference.copy()
    value[..., [0, 1, 4]] = stuck
    assert judge(list(zip(reference, value, strict=True))).collapsed_slices == (1,)


def test_has_no_slices_where_lengths_change() -> None:
    figures = judge([(x, 0 * x) for x in (normal(1, 2, 5), normal(1, 2, 6))])
    assert figures.worst_slice is None
    assert figures.collapsed_slices == ()


def test_counts_rows_with_the_same_best_class() -> None:
    reference = np.array([[1, 2, 3], [3, 2, 1], [1, 3, 2], [9, 0, 0]], np.float32)
    value = np.array([[1, 2, 9], [2, 3, 1], [0, 1, 0], [math.nan, 0, 0]], np.float32)
    assert judge([(reference, value)]).top1_agreement == 0.5


def test_a_choice_that_the_original_holds_for_as_good_is_none_lost() -> None:
    reference = np.array([[0.0, 0.995, 1.0], [0.0, 0.98, 1.0], [0.495, 0.505, 0.0]], np.float32)
    other = np.array([[0.0, 1.0, 0.9]] * 2 + [[0.5, 0.4, 0.0]], np.float32)
    assert judge([(reference[:1], other[:1])]).top1_agreement == 1.0
    assert judge([(reference[1:], other[1:])]).top1_agreement == 0.0
    # Of two classes the lesser one is never as good.
    two = np.array([[0.4999, 0.5001]], np.float32)
    assert judge([(two, two[:, ::-1])]).top1_agreement == 0.0
    broken = np.array([[math.nan, 1.0, 0.0]], np.float32)
    assert judge([(reference[:1], broken)]).top1_agreement == 0.0


def test_counts_equal_whole_numbers_and_texts() -> None:
    assert judge([(np.array([1, 2]), np.array([1, 3]))]).top1_agreement == 0.5
    text = [np.array(["a", "b"], dtype=object), np.array(["a", "c"], dtype=object)]
    figures = judge([(text[0], text[1])])
    assert figures.top1_agreement == 0.5
    assert judge([(text[0], text[0])]).sqnr_db == 200.0


def test_counts_sequences_that_read_the_same() -> None:
    def path(*steps: int) -> np.ndarray[Any, Any]:
        return np.eye(8, dtype=np.float32)[list(steps)][None]

    figures = judge(
        [
            (path(0, 1, 1, 0), path(0, 1, 1, 0)),
            (path(0, 1, 1, 0), path(1, 1, 0, 0)),
            (path(0, 1, 1, 0), path(0, 1, 2, 0)),
            (path(0, 1, 1, 0), path(0, 1, 0, 1)),
        ]
    )
    assert figures.kind == "sequence"
    assert figures.sequence_agreement == 0.5
    assert figures.top1_agreement == (4 + 2 + 3 + 2) / 16


def test_never_passes_what_is_not_finite() -> None:
    figures = judge([([[1.0, 2.0]], [[1.0, math.inf]]), ([[1.0, 2.0]], [[1.0, 2.0]])])
    assert figures.non_finite
    assert figures.sqnr_db == -math.inf
    assert figures.max_abs_error == math.inf


def test_accepts_infinities_that_the_original_has() -> None:
    masked = [[1.0, -math.inf, math.nan]]
    figures = judge([(masked, masked)])
    assert not figures.non_finite
    assert figures.sqnr_db == 200.0
    assert figures.top1_agreement == 1.0


def test_counts_another_shape_as_nothing_right() -> None:
    figures = judge([(np.ones((2, 4)), np.ones((1, 4))), (np.ones((2, 4)), np.ones((2, 4)))])
    assert figures.shape_mismatches == 1
    assert figures.cosine == pytest.approx(0.5)
    assert figures.sqnr_db == pytest.approx(10 * math.log10(2))
    assert figures.top1_agreement == 0.5


def test_copes_with_empty_and_silent_outputs() -> None:
    assert judge([(np.ones((0, 4)), np.ones((0, 4)))]).sqnr_db == 200.0
    assert judge([(np.zeros((1, 4)), np.zeros((1, 4)))]).cosine == 1.0
    silent = judge([(np.zeros((1, 4)), np.ones((1, 4)))])
    assert (silent.sqnr_db, silent.cosine) == (-math.inf, 0.0)


def test_a_given_kind_wins() -> None:
    assert judge([(normal(1, 10), normal(1, 10))], "embedding").top1_agreement is None
    assert judge([(normal(1, 10), normal(1, 10))], "values").kind == "values"


def original(feed: Feed) -> dict[str, Any]:
    return {"count": np.array([1]), "y": feed["x"], "z": -feed["x"]}


def test_compares_every_output_and_keeps_the_primary_one() -> None:
    samples = Samples([{"x": x} for x in normal(4, 1, 3)], labels=np.arange(4))
    seen: list[tuple[int, int]] = []
    comparison = compare(
        original,
        lambda feed: {**original(feed), "z": np.float32(-1.1) * feed["x"]},
        samples,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert [output.name for output in comparison.outputs] == ["count", "y", "z"]
    assert [output.sqnr_db for output in comparison.outputs] == pytest.approx([200, 200, 20], 1e-4)
    assert comparison.primary == "y"
    assert len(comparison.original_primary) == len(comparison.result_primary) == 4
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_keeps_no_outputs_that_nobody_scores() -> None:
    samples = Samples([{"x": normal(1, 3)}])
    assert compare(original, original, samples).original_primary == []
    assert len(compare(original, original, samples, keep_primary=True).original_primary) == 1


def test_needs_every_output_of_the_original() -> None:
    with pytest.raises(ModelError, match="must have the output 'z'"):
        compare(
            original, lambda feed: {"count": feed["x"], "y": feed["x"]}, Samples([{"x": normal(1)}])
        )


def test_the_primary_output_is_of_floats_if_any_is() -> None:
    assert primary_output({"a": np.array([1]), "b": np.array([1.0])}) == "b"
    assert primary_output({"a": np.array([1]), "b": np.array([2])}) == "a"


def test_sees_scores_die_beside_boxes() -> None:
    boxes, scores = np.abs(normal(4, 40, 4)) * 200, np.abs(normal(4, 40, 3)) / 4
    reference = np.concatenate([boxes, scores], axis=-1)
    value = np.concatenate([boxes, 0 * scores], axis=-1)
    pairs = [(r[None], v[None]) for r, v in zip(reference, value, strict=True)]
    assert judge(pairs).collapsed_slices == (4, 5, 6)
    assert judge(pairs).sqnr_db > 40


@pytest.mark.parametrize(
    ("feed", "agreement"),
    [
        ({"attention_mask": np.array([[1, 1, 1, 0]])}, 1.0),
        ({"attention_mask": np.array([[1, 1, 1, 1]])}, 0.75),
        # No word on padding: of other values, of another length, or two of them.
        ({"attention_mask": np.array([[1, 2, 1, 0]])}, 0.75),
        ({"attention_mask": np.array([[1, 1, 0]])}, 0.75),
        ({"mask_a": np.array([[1, 1, 1, 0]]), "mask_b": np.array([[1, 0, 0, 0]])}, 0.75),
        ({"ids": np.array([[1, 1, 1, 0]])}, 0.75),
    ],
)
def test_steps_that_a_mask_calls_padding_do_not_count(feed: Feed, agreement: float) -> None:
    scores = np.eye(9, dtype=np.float32)[None, [3, 1, 4, 5]]
    other = np.eye(9, dtype=np.float32)[None, [3, 1, 4, 6]]
    samples = Samples([feed] * 2)
    made = compare(lambda _: {"y": scores}, lambda _: {"y": other}, samples, {"y": "sequence"})
    assert made.outputs[0].top1_agreement == agreement
    assert made.outputs[0].sequence_agreement == float(agreement == 1)
