"""What the extra ``search`` brings, imported where it is used, with one sentence where it lacks."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from onnxslim_tk.errors import RecipeError


def optuna() -> Any:
    """The library optuna, quiet; raises RecipeError where it isn't installed."""
    library = _wanted("optuna", "search")
    library.logging.set_verbosity(library.logging.ERROR)
    return library


def plotly() -> Any:
    """The module ``plotly.graph_objects``; raises RecipeError where it isn't installed."""
    return _wanted("plotly.graph_objects", "search")


def torch() -> Any:
    """The library torch; raises RecipeError where it isn't installed."""
    return _wanted("torch", "train")


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """PyTorch keeps to one thread in the block: how many share a sum decides its last bits."""
    library = torch()
    before = library.get_num_threads()
    library.set_num_threads(1)
    try:
        yield
    finally:
        library.set_num_threads(before)


def _wanted(name: str, extra: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        said = name.split(".")[0]
        raise RecipeError(
            f"search: {said} is needed and isn't installed: pip install 'onnxslim-tk[{extra}]'"
        ) from error
