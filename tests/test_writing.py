import errno
import os
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from onnxslim_tk.errors import ModelError
from onnxslim_tk.writing import check_place, replacing, write_pieces

NOBODY = 65534
posix = pytest.mark.skipif(os.name != "posix", reason="needs POSIX")
root = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="takes the part of another user"
)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A file with old content."""
    path = tmp_path / "out.bin"
    path.write_bytes(b"old")
    return path


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user may enter."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


def test_a_new_file_has_the_usual_permissions(tmp_path: Path) -> None:
    write_pieces([b"new"], tmp_path / "out.bin")
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE((tmp_path / "out.bin").stat().st_mode) == 0o666 & ~mask
    assert os.listdir(tmp_path) == ["out.bin"]


@posix
def test_a_replaced_file_keeps_its_permissions(place: Path) -> None:
    place.chmod(0o640)
    write_pieces([b"new"], place)
    assert place.read_bytes() == b"new"
    assert stat.S_IMODE(place.stat().st_mode) == 0o640


@posix
def test_a_link_stays_and_what_it_points_to_is_replaced(place: Path, tmp_path: Path) -> None:
    folder = tmp_path / "links"
    folder.mkdir()
    (folder / "link.bin").symlink_to("../out.bin")
    (folder / "dangling.bin").symlink_to("../other.bin")
    write_pieces([b"new"], folder / "link.bin")
    write_pieces([b"other"], folder / "dangling.bin")
    assert (folder / "link.bin").is_symlink()
    assert place.read_bytes() == b"new"
    assert (tmp_path / "other.bin").read_bytes() == b"other"
    assert sorted(os.listdir(folder)) == ["dangling.bin", "link.bin"]


@posix
def test_a_device_is_written_to_and_stays(tmp_path: Path) -> None:
    write_pieces([b"new"], Path(os.devnull))
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    write_pieces([b"new"], tmp_path / "pipe")
    assert os.read(reader, 9) == b"new"
    os.close(reader)


def test_nobody_sees_a_file_that_is_not_whole(place: Path) -> None:
    with replacing(place) as file:
        file.write(b"ne")
        file.flush()
        assert place.read_bytes() == b"old"
        file.write(b"w")
    assert place.read_bytes() == b"new"


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), None])
def test_what_fails_on_the_way_leaves_the_old_file_and_nothing_else(
    place: Path, monkeypatch: pytest.MonkeyPatch, step: str, error: OSError | None
) -> None:
    def fail(*_: object) -> None:
        raise error or KeyboardInterrupt

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(ModelError if error else KeyboardInterrupt) as caught:
        write_pieces([b"new"], place)
    if error:
        assert str(caught.value) == f"model: {place} cannot be written: No space left on device"
    assert place.read_bytes() == b"old"
    assert os.listdir(place.parent) == ["out.bin"]


@posix
def test_a_disk_that_fills_up_leaves_the_old_file_and_nothing_else(place: Path) -> None:
    code = f"""
import pathlib, resource
from onnxslim_tk.writing import write_pieces
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
write_pieces([bytes(9000)], pathlib.Path({str(place)!r}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert f"ModelError: model: {place} cannot be written: File too large" in done.stderr
    assert place.read_bytes() == b"old"
    assert os.listdir(place.parent) == ["out.bin"]


def test_a_folder_that_is_not_there_is_an_error_of_ours(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot be written: No such file or directory"):
        write_pieces([b"new"], tmp_path / "no" / "out.bin")


def test_a_folder_is_no_place(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError):
        check_place(tmp_path)


@root
@pytest.mark.parametrize("kind", ["folder", "file"])
def test_what_is_read_only_stays(open_folder: Path, kind: str) -> None:
    path = open_folder / "out.bin"
    path.write_bytes(b"old")
    os.chown(open_folder, NOBODY, -1)
    os.chown(path, NOBODY, -1)
    (open_folder if kind == "folder" else path).chmod(0o555)
    os.seteuid(NOBODY)
    try:
        with pytest.raises(ModelError, match="cannot be written: no permission to write to"):
            write_pieces([b"new"], path)
    finally:
        os.seteuid(0)
    assert path.read_bytes() == b"old"
    assert os.listdir(open_folder) == ["out.bin"]


WRITER = """
import pathlib, sys, time
from onnxslim_tk.writing import replacing
with replacing(pathlib.Path(sys.argv[1])) as file:
    file.write(sys.argv[2].encode())
    file.flush()
    print("writing", flush=True)
    sys.stdin.read()
"""
Start = Callable[[str], "subprocess.Popen[str]"]


@pytest.fixture
def start(place: Path) -> Iterator[Start]:
    """Start a writer of a text, which waits for the end of its input before it is done."""
    running: list[Any] = []

    def call(text: str) -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(place), text],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        running.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        return process

    yield call
    for process in running:
        process.kill()
        process.communicate()


@posix
def test_what_a_killed_writer_left_is_removed_by_the_next_one(place: Path, start: Start) -> None:
    killed = start("half")
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    (place.parent / ".out.bin.mine.tmp").write_bytes(b"of somebody else")
    assert place.read_bytes() == b"old"
    assert len(os.listdir(place.parent)) == 3
    write_pieces([b"new"], place)
    assert sorted(os.listdir(place.parent)) == [".out.bin.mine.tmp", "out.bin"]


@posix
def test_two_writers_leave_each_other_alone_and_the_last_one_counts(
    place: Path, start: Start
) -> None:
    first, second = start("first"), start("second")
    assert len(os.listdir(place.parent)) == 3
    second.communicate()
    assert place.read_bytes() == b"second"
    first.communicate()
    assert place.read_bytes() == b"first"
    assert (first.returncode, second.returncode) == (0, 0)
    assert os.listdir(place.parent) == ["out.bin"]
