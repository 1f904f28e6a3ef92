"""Commands that torchrun starts in several processes."""

import os


def is_first_process() -> bool:
    """Whether this process is to show what is done: the only one, or torchrun's first."""
    return os.environ.get("RANK", "0") == "0"
