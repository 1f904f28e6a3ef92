import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from onnxslim_tk.errors import RecipeError, SessionError
from onnxslim_tk.search.cargo import Cargo
from onnxslim_tk.search.workers import Lost, Place, Workers
from tests.search import calls
from tests.search.conftest import Load

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="it has no SIGKILL")


@pytest.fixture
def cargo(load: Load) -> Cargo:
    return load()


@pytest.fixture(scope="module")
def dask() -> Iterator[str]:
    """The address of a cluster of two worker processes."""
    distributed = pytest.importorskip("distributed", reason="the extra dask is not installed")
    cluster = distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
    )
    with cluster:
        yield "dask://" + cluster.scheduler_address.removeprefix("tcp://")


def gathered(workers: Workers, call: Any, arguments: list[tuple[Any, ...]]) -> list[Any]:
    found = dict(workers.each(call, arguments))
    return [found[k] for k in range(len(arguments))]


def test_one_job_here_needs_no_process(cargo: Cargo) -> None:
    with Workers(cargo, Place(apart=False)) as workers:
        assert {row[2] for row in gathered(workers, calls.name_and, [(0,), (1,)])} == {os.getpid()}


def test_each_argument_gets_its_result_from_other_processes(cargo: Cargo) -> None:
    with Workers(cargo, Place(2)) as workers:
        for _ in range(2):
            found = gathered(workers, calls.name_and, [(k,) for k in range(6)])
            assert [row[1] for row in found] == list(range(6))
            assert {row[0] for row in found} == {cargo.source_sha256}
            assert os.getpid() not in {row[2] for row in found}


def test_a_worker_that_is_killed_loses_nothing(cargo: Cargo, tmp_path: Path) -> None:
    with Workers(cargo, Place(2)) as workers:
        found = gathered(workers, calls.die_once, [(k, str(tmp_path)) for k in range(6)])
    assert found == list(range(6))
    assert (tmp_path / "died").exists()


def test_a_call_that_always_kills_its_worker_is_given_up_alone(cargo: Cargo) -> None:
    with Workers(cargo, Place(2)) as workers:
        found = gathered(workers, calls.die, [(k,) for k in range(3)])
        assert [found[0], found[2]] == [0, 2]
        assert isinstance(found[1], Lost)
        assert "died" in found[1].why
        with pytest.raises(SessionError, match="died"):
            workers.one(calls.die, 1)


def test_a_call_that_hangs_is_ended(cargo: Cargo) -> None:
    with Workers(cargo, Place(2, seconds=6.0)) as workers:
        found = gathered(workers, calls.hang, [(k,) for k in range(3)])
    assert [found[0], found[2]] == [0, 2]
    assert isinstance(found[1], Lost)
    assert "longer" in found[1].why


def test_an_error_in_a_call_is_raised_here(cargo: Cargo) -> None:
    with Workers(cargo, Place(1)) as workers, pytest.raises(ValueError, match="call 7"):
        workers.one(calls.fail, 7)


def test_a_dask_cluster_gives_the_same_results(cargo: Cargo, dask: str) -> None:
    with Workers(cargo, Place(cluster=dask)) as workers:
        for _ in range(2):
            found = gathered(workers, calls.name_and, [(k,) for k in range(8)])
            assert [row[1] for row in found] == list(range(8))
            assert {row[0] for row in found} == {cargo.source_sha256}
    assert len({row[2] for row in found}) == 2


def test_a_dask_worker_that_is_killed_loses_nothing(
    cargo: Cargo, dask: str, tmp_path: Path
) -> None:
    with Workers(cargo, Place(cluster=dask)) as workers:
        found = gathered(workers, calls.die_once, [(k, str(tmp_path)) for k in range(6)])
    assert found == list(range(6))
    assert (tmp_path / "died").exists()


def test_no_scheduler_at_an_address_is_one_sentence(cargo: Cargo) -> None:
    pytest.importorskip("distributed", reason="the extra dask is not installed")
    with (
        pytest.raises(SessionError, match="no Dask scheduler"),
        Workers(cargo, Place(cluster="dask://127.0.0.1:9")),
    ):
        pass


@pytest.mark.parametrize("address", ["tcp://a:1", "dask:", "ray", "http://x"])
def test_refuses_clusters_of_other_kinds(address: str) -> None:
    with pytest.raises(RecipeError, match="cluster: must read"):
        Place(cluster=address)
