from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxslim_tk.errors import CalibrationError
from onnxslim_tk.measure.feeds import LazyFeeds
from onnxslim_tk.measure.runtime import Feed, TensorInfo
from onnxslim_tk.measure.samples import Samples, random_feed, read_samples, split


def tensor(name: str, dtype: Any, *shape: int | str | None) -> TensorInfo:
    return TensorInfo(name, np.dtype(dtype), shape)


X = tensor("x", np.float32, "batch", 2)
NO_FEEDS: Sequence[Feed] = []


def save(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


def numbered(count: int) -> Samples:
    feeds = [{"x": np.full((1, 2), i, np.float32)} for i in range(count)]
    return Samples(feeds, np.arange(count))


class TestFile:
    def test_gives_a_row_a_sample_and_its_label(self, tmp_path: Path) -> None:
        x = np.arange(6, dtype=np.float32).reshape(3, 2)
        samples = read_samples(save(tmp_path / "a.npz", x=x, labels=np.array([7, 8, 9])), [X])
        assert len(samples) == 3
        np.testing.assert_array_equal(samples.feeds[1]["x"], x[1:2])
        assert samples.labels is not None
        assert samples.labels.tolist() == [7, 8, 9]

    def test_gives_whole_batches_to_a_model_that_needs_them(self, tmp_path: Path) -> None:
        x = np.arange(14, dtype=np.float32).reshape(7, 2)
        path = save(tmp_path / "a.npz", x=x, labels=np.arange(7))
        samples = read_samples(path, [tensor("x", np.float32, 3, 2)])
        assert len(samples) == 2
        np.testing.assert_array_equal(samples.feeds[1]["x"], x[3:6])
        assert samples.labels is not None
        assert samples.labels.tolist() == [[0, 1, 2], [3, 4, 5]]
        with pytest.raises(CalibrationError, match="takes 8 rows a sample, got 7"):
            read_samples(path, [tensor("x", np.float32, 8, 2)])

    def test_serves_inputs_without_an_axis_of_samples(self, tmp_path: Path) -> None:
        state = np.arange(12, dtype=np.float32).reshape(3, 2, 1, 2)
        path = save(tmp_path / "a.npz", x=np.ones((3, 2), np.float32), state=state, rate=16000)
        inputs = [X, tensor("state", np.float32, 2, "batch", 2), tensor("rate", np.int64)]
        samples = read_samples(path, inputs)
        assert len(samples) == 3
        np.testing.assert_array_equal(samples.feeds[2]["state"], state[2])
        assert samples.feeds[2]["rate"].shape == ()
        rates = save(tmp_path / "b.npz", rate=np.array([8, 16]))
        assert [f["rate"].item() for f in read_samples(rates, inputs[2:]).feeds] == [8, 16]

    @pytest.mark.parametrize(
        ("given", "wanted"),
        [
            (np.array([[0.5, 1.5]]), np.float32),
            (np.array([[1, 2]], np.int32), np.int64),
            (np.array([[1, 2]], np.int64), np.int32),
            (np.array([[1, 2]], np.uint8), np.int32),
            (np.array([["a", "bc"]]), object),
        ],
    )
    def test_casts_within_a_kind(self, tmp_path: Path, given: Any, wanted: Any) -> None:
        samples = read_samples(save(tmp_path / "a.npz", x=given), [tensor("x", wanted, "n", 2)])
        assert samples.feeds[0]["x"].dtype == np.dtype(wanted)
        assert samples.feeds[0]["x"].tolist() == given.tolist()

    @pytest.mark.parametrize(
        ("given", "wanted"),
        [
            (np.array([[0, 255]], np.uint8), np.float32),
            (np.array([[0.0, 1.0]]), np.int64),
            (np.array([[0, 2**40]]), np.int32),
            (np.array([[-1, 2]]), np.uint8),
            (np.array([[1e30, 0]]), np.float16),
            (np.array([[True, False]]), np.int64),
        ],
    )
    def test_refuses_another_kind_and_values_that_do_not_fit(
        self, tmp_path: Path, given: Any, wanted: Any
    ) -> None:
        path = save(tmp_path / "a.npz", x=given)
        with pytest.raises(CalibrationError, match=r"a\.npz: input 'x' takes"):
            read_samples(path, [tensor("x", wanted, "n", 2)])

    @pytest.mark.parametrize(
        ("arrays", "reason"),
        [
            ({"y": np.ones((1, 2))}, "must be named x and, if known, 'labels', got y"),
            ({"x": np.ones((1, 2)), "label": np.ones(1)}, "got x, label"),
            ({"x": np.ones((1, 3))}, r"takes the shape \(batch, 2\), got \(1, 3\)"),
            ({"x": np.ones((1, 1, 1, 2))}, "takes the shape"),
            ({"x": np.ones((0, 2))}, "takes 1 rows a sample, got 0"),
            ({"x": np.ones((3, 2)), "labels": np.ones(2)}, "3 labels are needed, got 2"),
        ],
    )
    def test_says_what_does_not_fit(
        self, tmp_path: Path, arrays: dict[str, Any], reason: str
    ) -> None:
        with pytest.raises(CalibrationError, match=reason):
            read_samples(save(tmp_path / "a.npz", **arrays), [X])

    def test_refuses_inputs_of_unequal_length(self, tmp_path: Path) -> None:
        y = tensor("y", np.float32, "batch", 2)
        path = save(tmp_path / "a.npz", x=np.ones((3, 2)), y=np.ones((4, 2)))
        with pytest.raises(CalibrationError, match="'x' 3, 'y' 4"):
            read_samples(path, [X, y])
        pairs = [tensor("x", np.float32, 2, 2), tensor("y", np.float32, 2, 2)]
        path = save(tmp_path / "b.npz", x=np.ones((5, 2)), y=np.ones((4, 2)))
        with pytest.raises(CalibrationError, match="'x' 5, 'y' 4"):
            read_samples(path, pairs)

    def test_never_unpickles(self, tmp_path: Path) -> None:
        path = tmp_path / "a.npz"
        np.savez(path, x=np.array([[None, {}]], dtype=object))
        with pytest.raises(CalibrationError, match="could run code"):
            read_samples(path, [tensor("x", object, "n", 2)])

    def test_refuses_what_is_no_archive(self, tmp_path: Path) -> None:
        (tmp_path / "a.npz").write_bytes(b"junk")
        with pytest.raises(CalibrationError, match="must be an archive"):
            read_samples(tmp_path / "a.npz", [X])
        whole = save(tmp_path / "b.npz", x=np.ones((9, 2), np.float32)).read_bytes()
        (tmp_path / "b.npz").write_bytes(whole.replace(b"\x00\x00\x80?", b"\x00\x00\x81?", 1))
        with pytest.raises(CalibrationError, match="'x' cannot be read"):
            read_samples(tmp_path / "b.npz", [X])
        for path in (tmp_path / "missing.npz", tmp_path / "a.txt"):
            (tmp_path / "a.txt").touch()
            with pytest.raises(CalibrationError, match=path.name):
                read_samples(path, [X])

    def test_refuses_inputs_numpy_cannot_hold(self, tmp_path: Path) -> None:
        path = save(tmp_path / "a.npz", x=np.ones((1, 2)))
        with pytest.raises(CalibrationError, match="input 'x' must be a tensor"):
            read_samples(path, [TensorInfo("x", None, ("n", 2))])


class TestFolderOfFiles:
    X = tensor("x", np.float32, "batch", "length")

    def test_takes_a_file_a_sample_in_order_of_names(self, tmp_path: Path) -> None:
        for name, length in (("b", 2), ("a", 5)):
            save(tmp_path / f"{name}.npz", x=np.ones((1, length)))
        samples = read_samples(tmp_path, [self.X])
        assert [feed["x"].shape for feed in samples.feeds] == [(1, 5), (1, 2)]
        assert samples.labels is None

    def test_stacks_labels_and_pads_unequal_rows(self, tmp_path: Path) -> None:
        for name, label in (("a", [3, 4, 5]), ("b", [6])):
            save(tmp_path / f"{name}.npz", x=np.ones((1, 2)), labels=np.array(label))
        labels = read_samples(tmp_path, [self.X]).labels
        assert labels is not None
        assert labels.tolist() == [[3, 4, 5], [6, -1, -1]]

    def test_reads_labels_with_and_without_the_axis_of_samples(self, tmp_path: Path) -> None:
        for folder, label in (("one", np.array([4])), ("none", np.array(4))):
            (tmp_path / folder).mkdir()
            for name in "ab":
                save(tmp_path / folder / f"{name}.npz", x=np.ones((1, 2)), labels=label)
            labels = read_samples(tmp_path / folder, [self.X]).labels
            assert labels is not None
            assert labels.tolist() == [4, 4]

    def test_needs_labels_in_all_files_or_none(self, tmp_path: Path) -> None:
        save(tmp_path / "a.npz", x=np.ones((1, 2)), labels=np.array(1))
        save(tmp_path / "b.npz", x=np.ones((1, 2)))
        with pytest.raises(CalibrationError, match=r"b\.npz: 'labels' is missing"):
            read_samples(tmp_path, [self.X])

    def test_checks_a_file_when_it_is_read(self, tmp_path: Path) -> None:
        save(tmp_path / "a.npz", x=np.ones((1, 2)))
        save(tmp_path / "b.npz", x=np.ones(2))
        samples = read_samples(tmp_path, [self.X])
        with pytest.raises(CalibrationError, match=r"b\.npz: input 'x' takes the shape"):
            samples.feeds[1]

    def test_refuses_a_folder_of_anything_else(self, tmp_path: Path) -> None:
        with pytest.raises(CalibrationError, match="holds neither"):
            read_samples(tmp_path, [self.X])


class TestLimit:
    def test_takes_one_of_each_equal_stretch(self, tmp_path: Path) -> None:
        x = np.repeat(np.arange(100, dtype=np.float32), 2).reshape(100, 2)
        path = save(tmp_path / "a.npz", x=x, labels=np.arange(100))
        for seed in (0, 1):
            labels = read_samples(path, [X], limit=7, seed=seed).labels
            again = read_samples(path, [X], limit=7, seed=seed).labels
            assert labels is not None
            assert again is not None
            assert labels.tolist() == again.tolist()
            edges = np.arange(8) * 100 // 7
            assert np.all((edges[:-1] <= labels) & (labels < edges[1:]))

    def test_takes_all_when_there_are_no_more(self, tmp_path: Path) -> None:
        path = save(tmp_path / "a.npz", x=np.ones((3, 2)))
        assert len(read_samples(path, [X], limit=3)) == 3
        with pytest.raises(CalibrationError, match="limit must be at least 1, got 0"):
            read_samples(path, [X], limit=0)


class TestSamples:
    def test_takes_labels_along(self) -> None:
        samples = numbered(5).take([3, 0])
        assert [feed["x"][0, 0] for feed in samples.feeds] == [3, 0]
        assert samples.labels is not None
        assert samples.labels.tolist() == [3, 0]
        assert len(samples.take([])) == 0

    def test_reads_nothing_that_is_not_asked_for(self) -> None:
        read: list[int] = []

        def feed(index: int) -> Feed:
            read.append(index)
            return {}

        samples = Samples(LazyFeeds(9, feed)).take(range(2, 8)).take([1, 4])
        assert read == []
        assert len(list(samples.feeds)) == 2
        assert read == [3, 6]

    def test_slices_feeds_lazily_and_ends(self) -> None:
        feeds = LazyFeeds(4, lambda i: {"x": np.asarray(i)})
        assert [f["x"].item() for f in feeds[1:3]] == [1, 2]
        assert feeds[-1]["x"] == 3
        with pytest.raises(IndexError):
            feeds[4]

    def test_refuses_labels_of_another_number(self) -> None:
        with pytest.raises(CalibrationError, match="0 samples need as many labels, got 2"):
            Samples(NO_FEEDS, np.ones(2))


class TestSplit:
    @given(st.integers(3, 60), st.integers(0, 2**32 - 1))
    def test_parts_are_disjoint_and_complete(self, count: int, seed: int) -> None:
        parts = split(numbered(count), seed)
        groups = [parts.calibrate, parts.choose, parts.judge]
        labels = [part.labels.tolist() for part in groups if part.labels is not None]
        assert sorted(label for part in labels for label in part) == list(range(count))
        assert all(labels)
        assert len(labels[0]) >= count / 2 - 1
        assert not parts.overlaps

    def test_depends_on_the_seed_alone(self) -> None:
        parts = [split(numbered(20), seed).judge.labels for seed in (1, 1, 2)]
        assert np.array_equal(parts[0], parts[1])  # type: ignore[arg-type]
        assert not np.array_equal(parts[0], parts[2])  # type: ignore[arg-type]

    @pytest.mark.parametrize("count", [1, 2])
    def test_says_when_parts_overlap(self, count: int) -> None:
        parts = split(numbered(count), 0)
        assert parts.overlaps
        assert len(parts.calibrate) == len(parts.choose) == len(parts.judge) == count

    def test_needs_a_sample(self) -> None:
        with pytest.raises(CalibrationError, match="got 0"):
            split(Samples(NO_FEEDS), 0)


class TestRandomFeed:
    INPUTS = (
        tensor("x", np.float32, "b", 3, "h", None),
        tensor("state", np.float16, 2, "b", 4),
        tensor("ids", np.int64, None, "length"),
        tensor("attention_mask", np.int64, "b", "length"),
        tensor("flag", np.bool_),
        tensor("text", object, 2),
    )

    def test_fills_open_axes(self) -> None:
        feed = random_feed(self.INPUTS, seed=0, free=8)
        assert [value.shape for value in feed.values()] == [
            (1, 3, 8, 8), (2, 1, 4), (1, 8), (1, 8), (), (2,),
        ]  # fmt: skip
        assert all(feed[info.name].dtype == info.dtype for info in self.INPUTS)

    def test_is_safe_for_indices_and_masks(self) -> None:
        feed = random_feed(self.INPUTS, seed=0)
        assert not feed["ids"].any()
        assert feed["attention_mask"].all()

    def test_depends_on_the_seed_alone(self) -> None:
        first, second, other = (random_feed(self.INPUTS, seed)["x"] for seed in (3, 3, 4))
        assert np.array_equal(first, second)
        assert not np.array_equal(first, other)

    def test_refuses_what_numpy_cannot_hold(self) -> None:
        with pytest.raises(CalibrationError, match="input 'q'"):
            random_feed([TensorInfo("q", None, ())], 0)
