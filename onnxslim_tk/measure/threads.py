"""The same call on many items, several at a time, with the results in the items' order."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TypeVar

from threadpoolctl import threadpool_limits

from onnxslim_tk.errors import RecipeError

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Threads:
    """``jobs`` calls at a time, a negative number for so many less than processors plus one.

    Threads, since numpy and the runtime leave Python to itself while they compute, and arrays need
    no way from one process into another. Results don't depend on ``jobs``.
    """

    jobs: int = 1

    def __post_init__(self) -> None:
        if self.jobs == 0:
            raise RecipeError("jobs: must be 1 or more, or -1 for all processors, got 0")

    def each(self, call: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
        """What ``call`` gives for each item, in their order; raises what it raises."""
        if self.jobs == 1 or len(items) < 2:
            yield from map(call, items)
            return
        from joblib import Parallel, delayed

        threads = Parallel(n_jobs=self.jobs, backend="threading", return_as="generator")
        yield from threads(delayed(call)(item) for item in items)


def one_thread_each() -> AbstractContextManager[object]:
    """Linear algebra keeps to the thread that asks for it in the block.

    How many threads share a sum decides its last bits; so results are alike on all machines.
    """
    limits: AbstractContextManager[object] = threadpool_limits(limits=1)
    return limits
