from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from onnxslim_tk.errors import CalibrationError
from onnxslim_tk.measure.images import ImageOptions
from onnxslim_tk.measure.runtime import TensorInfo
from onnxslim_tk.measure.samples import read_samples


def image_input(*shape: int | str | None, dtype: Any = np.float32) -> list[TensorInfo]:
    return [TensorInfo("image", np.dtype(dtype), shape)]


def paint(path: Path, color: tuple[int, ...] | int = (255, 51, 0), size: int = 4) -> Path:
    path.parent.mkdir(exist_ok=True)
    mode = "L" if isinstance(color, int) else "RGB"
    Image.new(mode, (2 * size, size), color).save(path)
    return path


def first(folder: Path, inputs: list[TensorInfo], **options: Any) -> np.ndarray[Any, Any]:
    return read_samples(folder, inputs, ImageOptions(**options)).feeds[0]["image"]


def test_scales_pixels_then_shifts_them(tmp_path: Path) -> None:
    paint(tmp_path / "a.png")
    image = first(tmp_path, image_input("n", 3, 2, 2), mean=(0.5, 0.2, 0.0), std=(0.5, 0.1, 1.0))
    assert image.shape == (1, 3, 2, 2)
    assert image.dtype == np.float32
    np.testing.assert_allclose(image[0, :, 0, 0], [1, 0, 0], atol=1e-6)


def test_swaps_channels_before_mean_and_std(tmp_path: Path) -> None:
    paint(tmp_path / "a.png")
    image = first(tmp_path, image_input("n", 3, 2, 2), channels="BGR", mean=(0, 0, 1), scale=1.0)
    np.testing.assert_allclose(image[0, :, 0, 0], [0, 51, 254])


@pytest.mark.parametrize(
    ("shape", "layout", "expected"),
    [
        ((None, 3, 5, 6), None, (1, 3, 5, 6)),
        ((None, 5, 6, 3), None, (1, 5, 6, 3)),
        ((None, 1, 5, 6), None, (1, 1, 5, 6)),
        ((None, 4, 5, 6), None, (1, 4, 5, 6)),
        ((None, None, 5, 6), "NCHW", (1, 3, 5, 6)),
        ((None, None, None, None), "NHWC", (1, 4, 8, 3)),
        ((None, 3, 6, None), None, (1, 3, 6, 12)),
        ((None, 3, None, 6), None, (1, 3, 3, 6)),
    ],
)
def test_takes_layout_channels_and_size_from_the_model(
    tmp_path: Path, shape: tuple[int | None, ...], layout: Any, expected: tuple[int, ...]
) -> None:
    paint(tmp_path / "a.png")
    assert first(tmp_path, image_input(*shape), layout=layout).shape == expected


def test_gives_whole_pixels_to_a_model_of_whole_numbers(tmp_path: Path) -> None:
    paint(tmp_path / "a.bmp")
    inputs = image_input("n", None, None, 3, dtype=np.uint8)
    image = first(tmp_path, inputs)
    assert image.dtype == np.uint8
    assert image[0, 0, 0].tolist() == [255, 51, 0]
    with pytest.raises(CalibrationError, match="don't apply"):
        first(tmp_path, inputs, mean=(0.5,))
    with pytest.raises(CalibrationError, match="0 to 255"):
        first(tmp_path, image_input("n", None, None, 3, dtype=np.int8))


def test_keeps_the_greys_of_deep_images(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4), 32768, np.uint16)).save(tmp_path / "a.png")
    image = first(tmp_path, image_input("n", 1, 4, 4))
    np.testing.assert_allclose(image, 127 / 255, atol=1e-6)


def test_turns_photographs_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (8, 4)).save(tmp_path / "a.jpg", exif=exif)
    assert first(tmp_path, image_input("n", 3, None, None)).shape == (1, 3, 8, 4)


def test_labels_images_by_the_order_of_their_folders(tmp_path: Path) -> None:
    for name in ("dog/2.png", "cat/1.png", "cat/3.png"):
        paint(tmp_path / name, len(name))
    (tmp_path / "bird").mkdir()
    labels = read_samples(tmp_path, image_input("n", 1, 2, 2)).labels
    assert labels is not None
    assert labels.tolist() == [1, 1, 2]


def test_labels_images_by_the_numbers_of_their_folders(tmp_path: Path) -> None:
    for name in ("2/a.png", "10/a.png"):
        paint(tmp_path / name)
    labels = read_samples(tmp_path, image_input("n", 3, 2, 2)).labels
    assert labels is not None
    assert sorted(labels.tolist()) == [2, 10]


def test_groups_images_and_labels_for_a_fixed_batch(tmp_path: Path) -> None:
    for index in range(5):
        paint(tmp_path / str(index) / "a.png", index)
    samples = read_samples(tmp_path, image_input(2, 1, 2, 2), ImageOptions(scale=1.0))
    assert [feed["image"][:, 0, 0, 0].tolist() for feed in samples.feeds] == [[0, 1], [2, 3]]
    assert samples.labels is not None
    assert samples.labels.tolist() == [[0, 1], [2, 3]]
    with pytest.raises(CalibrationError, match="takes 6 images a run, got 5"):
        read_samples(tmp_path, image_input(6, 1, 2, 2))


def test_needs_one_size_in_a_batch(tmp_path: Path) -> None:
    paint(tmp_path / "a.png", size=2)
    paint(tmp_path / "b.png", size=3)
    with pytest.raises(CalibrationError, match="must have one size"):
        first(tmp_path, image_input(2, 3, None, None))


def test_refuses_mixed_folders(tmp_path: Path) -> None:
    paint(tmp_path / "a.png")
    paint(tmp_path / "cat" / "a.png")
    with pytest.raises(CalibrationError, match="holds both"):
        read_samples(tmp_path, image_input("n", 3, 2, 2))
    (tmp_path / "a.png").unlink()
    np.savez(tmp_path / "b.npz", image=np.ones(1))
    with pytest.raises(CalibrationError, match="holds both"):
        read_samples(tmp_path, image_input("n", 3, 2, 2))


def test_refuses_bombs_and_broken_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paint(tmp_path / "a.png", size=8)
    inputs = image_input("n", 3, 2, 2)
    for most in (100, 10):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", most)
        with pytest.raises(CalibrationError, match=f"at most {most} pixels"):
            read_samples(tmp_path, inputs)
    monkeypatch.undo()
    for junk in (b"junk", (tmp_path / "a.png").read_bytes()[:50]):
        (tmp_path / "a.png").write_bytes(junk)
        with pytest.raises(CalibrationError, match=r"a\.png cannot be read"):
            read_samples(tmp_path, inputs)


@pytest.mark.parametrize(
    ("inputs", "options", "reason"),
    [
        (image_input("n", 3, 2, 2) * 2, {}, "one input"),
        (image_input("n", 8), {}, "4 axes"),
        (image_input("n", 3, 2, 2, dtype=np.bool_), {}, "must be numbers"),
        (image_input("n", 7, 2, 2), {}, "set the layout"),
        (image_input("n", 7, 2, 2), {"layout": "NCHW"}, "7 channels"),
        (image_input("n", 1, 2, 2), {"channels": "BGR"}, "1 channels, got BGR"),
        (image_input("n", 1, 2, 2), {"mean": (0.1, 0.2, 0.3)}, "mean must be one number or 1"),
        (image_input("n", 3, 2, 2), {"size": (2, 3)}, "got another size of images: 3"),
    ],
)
def test_says_why_a_model_takes_no_such_images(
    tmp_path: Path, inputs: list[TensorInfo], options: dict[str, Any], reason: str
) -> None:
    paint(tmp_path / "a.png")
    with pytest.raises(CalibrationError, match=reason):
        read_samples(tmp_path, inputs, ImageOptions(**options))


@pytest.mark.parametrize(
    "options",
    [
        {"mean": ()}, {"mean": (0.1, 0.2)}, {"mean": (float("nan"),)}, {"std": (0.0,)},
        {"scale": 0.0}, {"size": (0, 4)}, {"layout": "HWC"}, {"channels": "rgb"},
    ],
)  # fmt: skip
def test_refuses_options_out_of_range(options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises(CalibrationError, match=f"images: {name} must be"):
        ImageOptions(**options)
