"""Samples that mean harm: refused in one sentence, before they take memory."""

import io
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from onnxslim_tk.errors import CalibrationError
from onnxslim_tk.measure.runtime import TensorInfo
from onnxslim_tk.measure.samples import ImageOptions, random_feed, read_samples

from .places import place_of

INPUTS = (TensorInfo("x", np.dtype(np.float32), (None, 3)),)
PICTURES = (TensorInfo("x", np.dtype(np.float32), (None, 3, None, None)),)


def npy(header: str, content: bytes = bytes(24), version: bytes = b"\x01\x00") -> bytes:
    """An array file with a header of somebody's own making."""
    text = header.encode("latin-1") + b"\n"
    size = struct.pack("<H" if version == b"\x01\x00" else "<I", len(text) % 65536)
    return b"\x93NUMPY" + version + size + text + content


def npz(path: Path, content: bytes, name: str = "x.npy") -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)
    return path


def header(shape: str, descr: str = "'<f4'") -> str:
    return f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}"


def pickled() -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.array([{"a": 1}], object), allow_pickle=True)
    return stream.getvalue()


ARRAYS: dict[str, bytes] = {
    "pickled": pickled(),
    "a huge shape": npy(header("(1000000000000, 3)")),
    "a shape beyond all numbers": npy(header(f"({10**30}, 3)")),
    "a negative shape": npy(header("(-2, 3)")),
    "less than announced": npy(header("(200, 3)")),
    "a shape that is none": npy(header("'wide'")),
    "a type that is none": npy(header("(2, 3)", "'<q9'")),
    "a type that is a number": npy(header("(2, 3)", "5")),
    "a header that is code": npy("__import__('os').getcwd()"),
    "a header without end": npy("{" * 300),
    "a header of parentheses": npy("(" * 5000),
    "a header of another version": npy(header("(2, 3)"), version=b"\x09\x00"),
    "no header": b"\x93NUMPY",
    "text": b"not an array",
    "nothing": b"",
    "another shape": npy(header("(6,)")),
    "another type": npy(header("(2, 3)", "'<i4'")),
    "records": npy(header("(2, 3)", "[('a', '<f4')]")),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_a_damaged_array_is_refused_in_one_sentence(name: str, tmp_path: Path) -> None:
    for place in (npz(tmp_path / "samples.npz", ARRAYS[name]), tmp_path):
        with pytest.raises(CalibrationError, match=r"^samples: "):
            read_samples(place, INPUTS)


def test_an_archive_of_no_samples_is_refused(tmp_path: Path) -> None:
    path = npz(tmp_path / "samples.npz", npy(header("(0, 3)"), b""))
    with pytest.raises(CalibrationError, match="takes 1 rows a sample, got 0"):
        read_samples(path, INPUTS)


def test_an_archive_that_unpacks_to_far_more_is_not_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "bomb.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", npy(header("(6000000, 3)"), bytes(72_000_000)))
    assert path.stat().st_size < 300_000
    with pytest.raises(CalibrationError, match="must unpack to at most"):
        read_samples(path, INPUTS)


@pytest.mark.parametrize("name", ["truncated", "plain array", "pickle", "text", "empty"])
def test_what_is_no_archive_is_refused(name: str, tmp_path: Path) -> None:
    path = npz(tmp_path / "samples.npz", npy(header("(2, 3)")))
    contents = {
        "truncated": path.read_bytes()[:-30],
        "plain array": npy(header("(2, 3)")),
        "pickle": b"\x80\x04\x95\x00\x00",
        "text": b"x = 1\n",
        "empty": b"",
    }
    path.write_bytes(contents[name])
    with pytest.raises(CalibrationError, match="must be an archive made by"):
        read_samples(path, INPUTS)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=6), st.integers(0, 400)
)
def test_no_damage_to_an_archive_is_a_traceback(
    tmp_path: Path, changes: list[tuple[int, int]], length: int
) -> None:
    data = bytearray(npz(tmp_path / "samples.npz", npy(header("(2, 3)"))).read_bytes())
    for place, value in changes:
        data[place % len(data)] = value
    (tmp_path / "samples.npz").write_bytes(data[: max(length, len(data) - length)])
    try:
        samples = read_samples(tmp_path / "samples.npz", INPUTS)
    except CalibrationError:
        return
    assert samples.feeds[0]["x"].shape == (1, 3)


def png(width: int, height: int, rows: bytes = b"") -> bytes:
    """A picture's header, and the rows that may follow."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    start = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    body = chunk(b"IHDR", start) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def saved() -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(stream, "JPEG")
    return stream.getvalue()


PICTURE_FILES: dict[str, Callable[[], bytes]] = {
    "huge dimensions": lambda: png(60_000, 60_000),
    "dimensions beyond memory": lambda: png(2**31 - 1, 2**31 - 1),
    "no dimensions": lambda: png(0, 0),
    "no rows": lambda: png(40, 40),
    "text": lambda: b"a cat sits on a mat",
    "nothing": lambda: b"",
    "half a picture": lambda: saved()[:300],
    "another format": lambda: b"GIF89a" + bytes(100),
    "a program": lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n",
}


@pytest.mark.parametrize("name", PICTURE_FILES)
def test_a_damaged_picture_is_refused_in_one_sentence(name: str, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(PICTURE_FILES[name]())
    with pytest.raises(CalibrationError, match=r"^samples: a.png") as caught:
        read_samples(tmp_path, PICTURES)
    assert "\n" not in str(caught.value)


def test_a_line_of_a_picture_does_not_grow_with_the_side_it_is_brought_to(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((1, 60_000), np.uint8)).save(tmp_path / "a.png")
    inputs = (TensorInfo("x", np.dtype(np.float32), (None, 3, 640, None)),)
    with pytest.raises(CalibrationError, match="must have at most"):
        read_samples(tmp_path, inputs, ImageOptions())


@pytest.mark.parametrize("kind", ["folder", "pipe", "device", "long", "broken link"])
def test_what_holds_no_samples_is_refused_at_once(kind: str, tmp_path: Path) -> None:
    place = place_of(kind, tmp_path / "samples.npz")
    with pytest.raises(CalibrationError, match=r"^samples: "):
        read_samples(place, INPUTS)


def test_an_input_as_large_as_a_model_likes_is_not_made_up() -> None:
    huge = (TensorInfo("x", np.dtype(np.float32), (1 << 40, 1 << 40)),)
    with pytest.raises(CalibrationError, match="to be made up"):
        random_feed(huge, seed=0)
