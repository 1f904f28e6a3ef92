"""Places where a file was promised and is none."""

import os
from pathlib import Path


def place_of(kind: str, path: Path) -> Path:
    """``path`` made what ``kind`` says, or another place where it can't be made."""
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        return Path("/dev/zero")
    elif kind == "long":
        return path.with_name("n" * 5000)
    elif kind == "broken link":
        path.symlink_to(path.with_name("nowhere"))
    elif kind == "large":
        path.touch()
        os.truncate(path, 1 << 30)
    elif kind == "no text":
        path.write_bytes(b"\xff\xfe\x00")
    return path
