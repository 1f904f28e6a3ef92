"""Workers: the same call on many arguments, in processes of this machine or of a cluster."""

import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import islice
from multiprocessing import TimeoutError as PoolTimeoutError
from typing import Any, Final, Protocol, Self
from urllib.parse import urlsplit

from onnxslim_tk.errors import RecipeError, SessionError
from onnxslim_tk.pipeline.isolate import limited

Call = Callable[..., Any]

_CLUSTERS: Final = ("dask", "ray")
# Joblib's backends have a TimeoutError each.
_ENDS: Final = (BrokenProcessPool, CancelledError, TimeoutError, PoolTimeoutError)
_PATIENCE: Final = 10
"""Seconds that a scheduler may take to answer."""


class Cargo(Protocol):
    """What is too large to travel with each call: a worker opens it once, and keeps it."""

    @property
    def key(self) -> str:
        """What tells it from any other."""
        ...

    def opened(self) -> Any:
        """What calls work on."""
        ...


@dataclass(frozen=True, slots=True)
class Place:
    """Where calls run: ``jobs`` processes here, or the workers of ``cluster``.

    ``cluster`` reads ``dask://HOST:PORT`` or ``ray://HOST:PORT``, the address of a scheduler.
    Without ``apart`` one job runs in this very process. ``seconds`` ends a call here that takes
    longer, ``memory`` is the most that one may take, in bytes.
    """

    jobs: int = 1
    cluster: str | None = None
    apart: bool = True
    seconds: float | None = None
    memory: int | None = None

    def __post_init__(self) -> None:
        if self.jobs == 0:
            raise RecipeError("jobs: must be 1 or more, or -1 for all processors, got 0")
        if self.cluster is not None:
            parts = urlsplit(self.cluster)
            if parts.scheme not in _CLUSTERS or not parts.netloc:
                raise RecipeError(
                    f"cluster: must read dask://HOST:PORT or ray://HOST:PORT, got {self.cluster!r}"
                )

    @property
    def is_ray(self) -> bool:
        """Whether calls go to a Ray cluster."""
        return self.cluster is not None and self.cluster.startswith("ray:")

    @property
    def is_here(self) -> bool:
        """Whether calls run in this process."""
        return self.cluster is None and self.jobs == 1 and not self.apart


@dataclass(frozen=True, slots=True)
class Lost:
    """In place of a result: the call's process died with it alone, or it came to no end."""

    why: str


class Workers:
    """Hands calls to workers; a worker that dies loses nothing but its present call.

    The cargo goes to each worker once, and again to one that took a dead one's place; after that
    only arguments and results travel. Calls get what it opens as their first argument.
    """

    def __init__(self, place: Place, cargo: Cargo | None = None) -> None:
        self._cargo, self._place = cargo, place
        self._opened: tuple[Any, ...] | None = None
        self._sent = cargo is None
        self._open = ExitStack()
        self._single: Any = None
        self._kept: Any = None

    def __enter__(self) -> Self:
        self._open.enter_context(_backend(self._place))
        if self._place.is_ray:
            # Its processes would start anew for each round.
            self._kept = self._open.enter_context(self._pool(-1))
        return self

    def __exit__(self, *ending: object) -> None:
        self._end_single()
        self._open.close()

    def each(self, call: Call, arguments: Sequence[tuple[Any, ...]]) -> Iterator[tuple[int, Any]]:
        """What ``call`` gives, with the number of its arguments, as it comes.

        Raises what a call raises; a call whose process dies again when it runs alone gives a Lost.
        """
        if self._place.is_here:
            if self._opened is None:
                self._opened = () if self._cargo is None else (self._cargo.opened(),)
            yield from ((k, call(*self._opened, *args)) for k, args in enumerate(arguments))
            return
        left = dict(enumerate(arguments))
        while left:
            try:
                for k, result in self._pass(call, left, self._place.jobs):
                    del left[k]
                    yield k, result
            except _deaths() as error:
                self._end_single()
                yield from self._alone(call, left, error)

    def one(self, call: Call, *arguments: Any) -> Any:
        """What one call gives; raises SessionError where its process dies."""
        ((_, result),) = self.each(call, [arguments])
        if isinstance(result, Lost):
            raise SessionError(f"worker: {result.why}")
        return result

    def _pass(
        self, call: Call, left: dict[int, tuple[Any, ...]], jobs: int
    ) -> Iterator[tuple[int, Any]]:
        """One round over all that is left; a worker that lacks the model is sent it with a call."""
        waiting, carried = dict(left), not self._sent
        while waiting:
            # No more of the model on its way than there are workers to take it.
            most = self._count(jobs) if carried else len(waiting)
            some = dict(islice(waiting.items(), most))
            lacked = False
            cargo = self._cargo if carried else None
            for k, known, result in self._parallel(call, some, jobs, cargo):
                if known:
                    del waiting[k]
                    yield k, result
                lacked = lacked or not known
            self._sent, carried = True, lacked

    def _count(self, jobs: int) -> int:
        from joblib import effective_n_jobs

        return max(1, int(effective_n_jobs(-1 if self._place.cluster else jobs)))

    def _parallel(
        self, call: Call, waiting: dict[int, tuple[Any, ...]], jobs: int, cargo: Cargo | None
    ) -> Iterator[tuple[int, bool, Any]]:
        from joblib import delayed

        if self._place.cluster is None and jobs == 1:
            yield from self._in_turn(call, waiting, cargo)
            return
        calls = (delayed(work)(self._order(cargo), k, call, args) for k, args in waiting.items())
        yield from (self._kept or self._pool(jobs))(calls)

    def _pool(self, jobs: int) -> Any:
        """Joblib's way to many workers at once."""
        from joblib import Parallel

        settings: dict[str, Any] = {"batch_size": 1, "pre_dispatch": "all"}
        if self._place.cluster is None:
            settings |= {"n_jobs": jobs, "backend": "loky", "timeout": self._place.seconds}
        else:
            settings |= {"n_jobs": -1}
        settings["return_as"] = "list" if self._place.is_ray else "generator_unordered"
        return Parallel(**settings)

    def _in_turn(
        self, call: Call, waiting: dict[int, tuple[Any, ...]], cargo: Cargo | None
    ) -> Iterator[tuple[int, bool, Any]]:
        """One process beside this one, which joblib's Parallel has no way to ask for."""
        from joblib.externals.loky import ProcessPoolExecutor

        if self._single is None:
            self._single = ProcessPoolExecutor(max_workers=1)
        for k, args in waiting.items():
            future = self._single.submit(work, self._order(cargo), k, call, args)
            yield future.result(timeout=self._place.seconds)

    def _order(self, cargo: Cargo | None) -> "_Order":
        key = None if self._cargo is None else self._cargo.key
        return _Order(key, cargo, self._place.memory)

    def _end_single(self) -> None:
        if self._single is not None:
            self._single.shutdown(wait=True, kill_workers=True)
            self._single = None

    def _alone(
        self, call: Call, left: dict[int, tuple[Any, ...]], error: BaseException
    ) -> Iterator[tuple[int, Any]]:
        """The calls that may have been under way at a death, one by one: it shows whose it was.

        Calls begin in their order, so the first that have not ended are meant.
        """
        for k in list(left)[: self._count(self._place.jobs)]:
            try:
                ((_, result),) = self._pass(call, {k: left[k]}, 1)
            except _deaths() as again:
                error = again
                self._end_single()
                result = Lost(_told(error))
            del left[k]
            yield k, result


@dataclass(frozen=True, slots=True)
class _Order:
    """What a worker is told beside the call: which cargo, and the most memory it may take."""

    key: str | None
    cargo: Cargo | None
    memory: int | None


def work(order: _Order, k: int, call: Call, arguments: tuple[Any, ...]) -> Any:
    """In a worker: ``k``, whether the cargo is here, and what the call gives if it is."""
    with limited(order.memory):
        if order.key is None:
            return k, True, call(*arguments)
        if order.cargo is not None and order.key not in _held:
            _held.clear()
            _held[order.key] = order.cargo.opened()
        if order.key not in _held:
            return k, False, None
        return k, True, call(_held[order.key], *arguments)


_held: dict[str, Any] = {}
"""In a worker: the cargo that it works on, opened, by its key."""


@contextmanager
def _backend(place: Place) -> Iterator[None]:
    """Joblib's way to the workers, for the block."""
    if place.cluster is None:
        yield
        return
    from joblib import parallel_config

    kind, address = place.cluster.split("://", 1)
    try:
        opened = _dask(address) if kind == "dask" else _ray(address)
    except ImportError as error:
        raise RecipeError(
            f"cluster: {kind} isn't installed: pip install 'onnxslim-tk[{kind}]'"
        ) from error
    with opened as settings, parallel_config(**settings):
        yield


@contextmanager
def _dask(address: str) -> Iterator[dict[str, Any]]:
    from distributed import Client

    try:
        client = Client(f"tcp://{address}", timeout=_PATIENCE, set_as_default=False)
    except OSError as error:
        raise SessionError(f"cluster: no Dask scheduler answers at {address}: {error}") from error
    with client:
        from joblib._dask import DaskDistributedBackend

        yield {"backend": DaskDistributedBackend(client=client)}


@contextmanager
def _ray(address: str) -> Iterator[dict[str, Any]]:
    import ray
    from ray.util.joblib import register_ray

    if not ray.is_initialized():
        ray.init(address=f"ray://{address}", log_to_driver=False)
    register_ray()
    yield {"backend": "ray"}


def _deaths() -> tuple[type[BaseException], ...]:
    """The exceptions that tell of a worker's end, not of an error in the call."""
    found: list[type[BaseException]] = [*_ENDS]
    if "distributed" in sys.modules:
        from distributed import KilledWorker

        found.append(KilledWorker)
    if "ray" in sys.modules:
        from ray.exceptions import RayError

        found.append(RayError)
    return tuple(found)


def _told(error: BaseException) -> str:
    if isinstance(error, TimeoutError | PoolTimeoutError):
        return "the call took longer than its limit and was ended"
    return f"its worker died, also when it ran alone: {' '.join(str(error).split())[:200]}"
