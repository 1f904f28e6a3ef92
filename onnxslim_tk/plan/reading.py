"""Reading files that people write: of a size that can be held, and plain data alone."""

import stat
from pathlib import Path
from typing import Any, Final

import yaml

from onnxslim_tk.errors import RecipeError

# Far beyond what people write; an alias of an alias of an alias comes to billions of values.
_MOST_TEXT: Final = 1 << 18
_MOST_VALUES: Final = 100_000
_DEEPEST: Final = 20
_MOST_REASON: Final = 200
# What PyYAML raises for scalars that look like a number, a date or a tag's value, and aren't.
_BAD_SCALARS: Final = (
    *(AttributeError, LookupError, OverflowError, RecursionError, TypeError, ValueError),
)


def read_text(path: Path, most: int = _MOST_TEXT) -> str:
    """The text of a file of ``most`` bytes; raises OSError or ValueError for any other."""
    # A pipe may never end, nor does a device.
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(f"{path.name} is not a file")
    if path.stat().st_size > most:
        raise ValueError(f"{path.name} holds more than {most} bytes")
    return path.read_text(encoding="utf-8")


def read_yaml(text: str, origin: str) -> Any:
    """Plain data out of YAML text; raises RecipeError for what isn't any, or is endless."""
    try:
        data = yaml.safe_load(text)
    except (yaml.YAMLError, *_BAD_SCALARS) as error:
        first = " ".join(str(error).split())[:_MOST_REASON] or type(error).__name__
        raise RecipeError(f"{origin}: not valid YAML: {first}") from error
    check_extent(data, origin)
    return data


def check_extent(data: Any, origin: str, most: int = _MOST_VALUES) -> None:
    """Raise RecipeError for plain data that nests too deep, or repeats itself without end."""
    waiting, count = [(data, 0)], 0
    while waiting:
        value, depth = waiting.pop()
        count += 1
        if depth > _DEEPEST or count > most:
            raise RecipeError(
                f"{origin}: must hold at most {most} values, nested {_DEEPEST} deep at most"
            )
        if isinstance(value, dict):
            waiting.extend((item, depth + 1) for pair in value.items() for item in pair)
        elif isinstance(value, list | tuple | set | frozenset):
            waiting.extend((item, depth + 1) for item in value)
