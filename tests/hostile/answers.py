"""What may come of hostile input: a result, or an error of ours in one line."""

from collections.abc import Iterator
from contextlib import contextmanager

from onnxslim_tk.errors import OnnxSlimError


@contextmanager
def a_sentence_at_most(kind: type[OnnxSlimError] = OnnxSlimError) -> Iterator[None]:
    """Take an error of ``kind`` for an answer if it is one line; every other one goes on."""
    said = "done"
    try:
        yield
    except kind as error:
        said = str(error)
    assert len(said.splitlines()) == 1
