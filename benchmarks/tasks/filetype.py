"""File types: this machine's own files, whose extension says what they are."""

import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.tasks.evaluation import (
    Evaluation,
    Items,
    Run,
    Scorer,
    Split,
    mean_of,
    singly,
    split_of,
)
from onnxslim_tk.measure.runtime import Feed

_TYPES: Final = {
    f".{extension}": kind
    for kind, extensions in {
        "c": "c h cu cuh",
        "cpp": "hpp",
        "cmake": "cmake",
        "css": "css",
        "csv": "csv",
        "elf": "so",
        "gif": "gif",
        "go": "go",
        "gzip": "gz",
        "html": "html",
        "ini": "ini",
        "java": "java",
        "javascript": "js",
        "jpeg": "jpg",
        "json": "json",
        "lua": "lua",
        "m4": "m4",
        "markdown": "md",
        "npy": "npy",
        "npz": "npz",
        "ogg": "ogg",
        "onnx": "onnx",
        "pdf": "pdf",
        "pebin": "exe",
        "perl": "pl pm",
        "png": "png",
        "po": "po",
        "python": "py",
        "pythonbytecode": "pyc",
        "rst": "rst",
        "ruby": "rb",
        "rust": "rs",
        "shell": "sh",
        "sql": "sql",
        "svg": "svg",
        "tcl": "tcl",
        "toml": "toml",
        "ttf": "ttf",
        "typescript": "ts",
        "wav": "wav",
        "woff2": "woff2",
        "xml": "xml",
        "yaml": "yaml",
        "zip": "zip whl",
    }.items()
    for extension in extensions.split()
}
# An extension doesn't tell these apart.
_ALIKE: Final = (
    {"c", "cpp"},
    {"zip", "jar"},
    {"txt", "markdown", "rst"},
    {"html", "xml"},
    {"javascript", "typescript"},
)
_PER_TYPE: Final = 60
_MOST_FOUND: Final = 4000
_SMALLEST: Final = 200
_BLOCK: Final = 4096
_WINDOW: Final = 1024
_PADDING: Final = 256


class FileTypes(Evaluation):
    """Share of files whose type is right; figures compare on one machine only."""

    name = "filetype"
    metric = "accuracy"
    files: ClassVar = ("data/magika_config.json",)
    test_items = 1000

    def items(self, count: int, split: Split) -> Items:
        """Files as the values of their first and last bytes, ``(1, 2048)``."""
        found = list(_files(split))
        order = np.random.default_rng(6).permutation(len(found))[:count]
        chosen = [found[k] for k in order]
        feeds: list[Feed] = [{"bytes": _ends(path)[None]} for path, _ in chosen]
        return Items(feeds, [kind for _, kind in chosen], singly(len(feeds)))

    def answer(self, run: Run, feed: Feed) -> int:
        """The class with the highest score."""
        return int(run(feed)[0].argmax())

    def scorer(self, answers: Sequence[Any], truths: Sequence[Any]) -> Scorer:
        """Hits, types that extensions can't tell apart counting as one."""
        config = json.loads((self.data / self.files[0]).read_text(encoding="utf-8"))
        names = config["target_labels_space"]
        said = [names[answer] for answer in answers]
        return mean_of(
            [
                kind == truth or any({kind, truth} <= alike for alike in _ALIKE)
                for kind, truth in zip(said, truths, strict=True)
            ]
        )


def _files(split: Split) -> Iterator[tuple[Path, str]]:
    """At most 60 files of each type, in an order that depends on names alone."""
    found: dict[str, list[Path]] = {}
    roots = ("/usr/share", "/usr/lib", "/usr/include", "/usr/local", sys.prefix, sys.base_prefix)
    for root in roots:
        for folder, subfolders, names in os.walk(root):
            subfolders[:] = sorted(s for s in subfolders if s not in ("locale", "zoneinfo"))
            for name in sorted(names):
                kind = _TYPES.get(os.path.splitext(name)[1].lower())
                if kind is None or split_of(name) != split:
                    continue
                path = Path(folder, name)
                known = found.setdefault(kind, [])
                if len(known) < _MOST_FOUND and not path.is_symlink():
                    known.append(path)
    rng = np.random.default_rng(5)
    for kind in sorted(found):
        usable = [path for path in found[kind] if path.stat().st_size >= _SMALLEST]
        for k in rng.permutation(len(usable))[:_PER_TYPE]:
            yield usable[k], kind


def _ends(path: Path) -> NDArray[np.int32]:
    with path.open("rb") as opened:
        head = opened.read(_BLOCK)
        size = opened.seek(0, os.SEEK_END)
        opened.seek(max(0, size - _BLOCK))
        tail = opened.read(_BLOCK)
    head, tail = head.lstrip()[:_WINDOW], tail.rstrip()[-_WINDOW:]
    values = np.full(2 * _WINDOW, _PADDING, np.int32)
    values[: len(head)] = list(head)
    values[2 * _WINDOW - len(tail) :] = list(tail)
    return values
