import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from onnxslim_tk.errors import RecipeError, SessionError
from onnxslim_tk.pipeline.workers import Lost, Place, Workers
from tests.pipeline import calls

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="it has no SIGKILL")


@dataclass(frozen=True)
class Crate:
    """Something to carry."""

    key: str = "crate"

    def opened(self) -> str:
        return f"what is in the {self.key}"


@pytest.fixture
def cargo() -> Crate:
    return Crate()


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


def test_one_job_here_needs_no_process(cargo: Crate) -> None:
    with Workers(Place(apart=False), cargo) as workers:
        assert {row[2] for row in gathered(workers, calls.name_and, [(0,), (1,)])} == {os.getpid()}


def test_each_argument_gets_its_result_from_other_processes(cargo: Crate) -> None:
    with Workers(Place(2), cargo) as workers:
        for _ in range(2):
            found = gathered(workers, calls.name_and, [(k,) for k in range(6)])
            assert [row[1] for row in found] == list(range(6))
            assert {row[0] for row in found} == {"what is in the crate"}
            assert os.getpid() not in {row[2] for row in found}


def test_a_worker_that_is_killed_loses_nothing(cargo: Crate, tmp_path: Path) -> None:
    with Workers(Place(2), cargo) as workers:
        found = gathered(workers, calls.die_once, [(k, str(tmp_path)) for k in range(6)])
    assert found == list(range(6))
    assert (tmp_path / "died").exists()


def test_a_call_that_always_kills_its_worker_is_given_up_alone(cargo: Crate) -> None:
    with Workers(Place(2), cargo) as workers:
        found = gathered(workers, calls.die, [(k,) for k in range(3)])
        assert [found[0], found[2]] == [0, 2]
        assert isinstance(found[1], Lost)
        assert "died" in found[1].why
        with pytest.raises(SessionError, match="died"):
            workers.one(calls.die, 1)


def test_a_call_that_hangs_is_ended(cargo: Crate) -> None:
    with Workers(Place(2, seconds=9.0), cargo) as workers:
        found = gathered(workers, calls.hang, [(k,) for k in range(3)])
    assert [found[0], found[2]] == [0, 2]
    assert isinstance(found[1], Lost)
    assert "longer" in found[1].why


def test_an_error_in_a_call_is_raised_here(cargo: Crate) -> None:
    with Workers(Place(1), cargo) as workers, pytest.raises(ValueError, match="call 7"):
        workers.one(calls.fail, 7)


def test_a_dask_cluster_gives_the_same_results(cargo: Crate, dask: str) -> None:
    with Workers(Place(cluster=dask), cargo) as workers:
        for _ in range(2):
            found = gathered(workers, calls.name_and, [(k,) for k in range(8)])
            assert [row[1] for row in found] == list(range(8))
            assert {row[0] for row in found} == {"what is in the crate"}
    assert len({row[2] for row in found}) == 2


def test_a_dask_worker_that_is_killed_loses_nothing(
    cargo: Crate, dask: str, tmp_path: Path
) -> None:
    with Workers(Place(cluster=dask), cargo) as workers:
        found = gathered(workers, calls.die_once, [(k, str(tmp_path)) for k in range(6)])
    assert found == list(range(6))
    assert (tmp_path / "died").exists()


def test_a_ray_cluster_does_as_well_and_outlives_a_worker(cargo: Crate, tmp_path: Path) -> None:
    ray = pytest.importorskip("ray", reason="the extra ray is not installed")
    # Its processes find our modules where this one does.
    paths = {"env_vars": {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}}
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, runtime_env=paths)
    try:
        with Workers(Place(cluster="ray://127.0.0.1:10001"), cargo) as workers:
            for _ in range(2):
                found = gathered(workers, calls.name_and, [(k,) for k in range(6)])
                assert [row[1] for row in found] == list(range(6))
                assert {row[0] for row in found} == {"what is in the crate"}
            found = gathered(workers, calls.die_once, [(k, str(tmp_path)) for k in range(6)])
        assert found == list(range(6))
        assert (tmp_path / "died").exists()
    finally:
        ray.shutdown()


def test_no_scheduler_at_an_address_is_one_sentence(cargo: Crate) -> None:
    pytest.importorskip("distributed", reason="the extra dask is not installed")
    with (
        pytest.raises(SessionError, match="no Dask scheduler"),
        Workers(Place(cluster="dask://127.0.0.1:9"), cargo),
    ):
        pass


@pytest.mark.parametrize("address", ["tcp://a:1", "dask:", "ray", "http://x"])
def test_refuses_clusters_of_other_kinds(address: str) -> None:
    with pytest.raises(RecipeError, match="cluster: must read"):
        Place(cluster=address)
