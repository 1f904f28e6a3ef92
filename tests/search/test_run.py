import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("optuna", reason="the extra search is not installed")
pytest.importorskip("plotly", reason="the extra search is not installed")

from onnxslim_tk.errors import ModelError, RecipeError
from onnxslim_tk.measure.samples import Samples
from onnxslim_tk.pipeline.options import Options
from onnxslim_tk.pipeline.run import apply
from onnxslim_tk.plan.budget import Budget
from onnxslim_tk.search import Cargo, Effort, Goal, Place, search
from onnxslim_tk.search.archive import Archive, journal
from onnxslim_tk.search.evaluate import Evaluation, evaluate
from onnxslim_tk.search.folder import Folder
from onnxslim_tk.search.goal import Figures
from onnxslim_tk.search.run import State
from tests.search.conftest import RECIPE
from tests.search.problems import space

HERE = Place(apart=False)
GOAL = Goal(("size", "quality"))
Load = Callable[..., Cargo]


def front(folder: Path) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((folder / "front.json").read_text())
    return data


def points(folder: Path) -> list[tuple[str, list[float]]]:
    return [(p["sha256"], list(p["values"].values())) for p in front(folder)["points"]]


def effort(count: int = 10, **more: Any) -> Effort:
    given: dict[str, Any] = {"evaluations": count, "batch": 4, "chosen": 2, "place": HERE}
    return Effort(**given | more)


def test_leaves_a_front_with_models_plans_reports_and_a_page(
    load: Load, model: Path, samples: Samples, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    search(load(), folder, GOAL, effort())
    data = front(folder)
    assert data["evaluations"] == 10
    values = [list(p["values"].values()) for p in data["points"]]
    assert values == sorted(values)
    assert [v[1] for v in values] == sorted((v[1] for v in values), reverse=True)
    assert data["best"] in {p["name"] for p in data["points"]}
    for point in data["points"]:
        assert point["holds"]
        assert (folder / point["model"]).stat().st_size == point["figures"]["bytes"]
    judged = [p for p in data["points"] if p["judged"]]
    assert len(judged) == 2
    # What holds on the samples for choosing may miss on those for judging, and then it is said.
    for point in judged:
        assert isinstance(point["judged"]["holds"], bool)
        assert point["judged"]["latency_ratio"] > 0
    assert (folder / "front.html").stat().st_size > 1_000_000
    # A point's plan does the same by hand.
    plan = folder / judged[0]["plan"]
    apply(model, tmp_path / "again.onnx", plan, Options(calibration=samples), force=True)
    assert (tmp_path / "again.onnx").read_bytes() == (folder / judged[0]["model"]).read_bytes()


def test_workers_and_their_number_change_nothing(load: Load, tmp_path: Path) -> None:
    search(load(), tmp_path / "one", GOAL, effort(strategy="regularized"))
    more = effort(strategy="regularized", place=Place(2))
    search(load(), tmp_path / "two", GOAL, more)
    assert points(tmp_path / "one") == points(tmp_path / "two")


def test_gradients_through_the_graph_lead_to_plans(load: Load, tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="the extra train isn't installed")
    one, two = (tmp_path / name for name in ("one", "two"))
    for folder in (one, two):
        search(load(), folder, GOAL, effort(3, strategy="differentiable", chosen=1))
    assert points(one) == points(two) != []
    # They price errors and bytes: some weight has lost something.
    assert min(values[0] for _, values in points(one)) < 0.9


def test_a_dask_cluster_of_processes_finds_the_same_front(load: Load, tmp_path: Path) -> None:
    distributed = pytest.importorskip("distributed", reason="the extra dask is not installed")
    search(load(), tmp_path / "one", GOAL, effort(8, strategy="evolutionary"))
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
    ) as cluster:
        address = "dask://" + cluster.scheduler_address.removeprefix("tcp://")
        there = effort(8, strategy="evolutionary", place=Place(cluster=address))
        search(load(), tmp_path / "two", GOAL, there)
    assert points(tmp_path / "one") == points(tmp_path / "two")


class StoppedError(Exception):
    pass


def stopping_after(count: int) -> Callable[[State], None]:
    def watch(state: State) -> None:
        if state.step == "evaluate" and state.done >= count:
            raise StoppedError

    return watch


def test_a_search_that_was_ended_goes_on_where_it_was(
    load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    search(load(), tmp_path / "whole", GOAL, effort(strategy="evolutionary"))
    with pytest.raises(StoppedError):
        search(load(), tmp_path / "cut", GOAL, effort(strategy="evolutionary"), stopping_after(6))
    ran = []

    def counted(*given: Any) -> Any:
        ran.append(given)
        return evaluate(*given)

    monkeypatch.setattr("onnxslim_tk.search.run.evaluate", counted)
    search(load(), tmp_path / "cut", GOAL, effort(strategy="evolutionary"))
    assert len(ran) == 10 - 6
    assert points(tmp_path / "cut") == points(tmp_path / "whole")


@pytest.mark.skipif(sys.platform == "win32", reason="it has no SIGKILL")
def test_a_search_that_was_killed_loses_nothing(
    load: Load, model: Path, samples: Samples, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    np.savez(tmp_path / "samples.npz", x=np.concatenate([feed["x"] for feed in samples.feeds]))
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    code = f"""
import os, signal
from pathlib import Path
from onnxslim_tk import Options
from onnxslim_tk.pipeline.run import open_workshop
from onnxslim_tk.search import Effort, Goal, Place, pack_up, search
def watch(state):
    if state.step == "evaluate" and state.done == 6:
        os.kill(os.getpid(), signal.SIGKILL)
options = Options(calibration={str(tmp_path / "samples.npz")!r})
recipe = {str(tmp_path / "recipe.yaml")!r}
cargo = pack_up(open_workshop(Path({str(model)!r}), recipe, options, None))
effort = Effort(10, batch=4, chosen=2, place=Place(apart=False))
search(cargo, Path({str(folder)!r}), Goal(("size", "quality")), effort, watch)
"""
    killed = subprocess.run([sys.executable, "-c", code], check=False)
    assert killed.returncode == -signal.SIGKILL
    best = front(folder)
    assert best["points"]
    assert all((folder / p["model"]).exists() for p in best["points"])
    search(load(), folder, GOAL, effort())
    search(load(), tmp_path / "whole", GOAL, effort())
    assert points(folder) == points(tmp_path / "whole")
    assert not list(folder.glob(".*onnxslim*"))


def test_a_larger_budget_goes_on_from_what_is_known(load: Load, tmp_path: Path) -> None:
    search(load(), tmp_path, GOAL, effort(4, strategy="random"))
    search(load(), tmp_path, GOAL, effort(8, strategy="random"))
    assert front(tmp_path)["known"] == 8


def test_limits_hold_for_every_point(load: Load, tmp_path: Path) -> None:
    cargo = load(budget=Budget(min_sqnr_db=30.0))
    search(cargo, tmp_path, Goal(("size",), {"size": 0.9}), effort(12))
    (point,) = front(tmp_path)["points"]
    assert point["figures"]["error"] <= 10**-3
    assert point["values"]["size"] <= 0.9


def test_where_nothing_keeps_the_limits_the_nearest_is_there(load: Load, tmp_path: Path) -> None:
    cargo = load(budget=Budget(min_sqnr_db=150.0))
    search(cargo, tmp_path, Goal(("size",), {"size": 0.01}), effort(6, strategy="random"))
    (point,) = front(tmp_path)["points"]
    assert not point["holds"]


def test_refuses_a_folder_of_another_search(load: Load, tmp_path: Path) -> None:
    search(load(), tmp_path, GOAL, effort(2))
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(RecipeError, match="another model, other samples or settings"):
        search(load(seed=1), tmp_path, GOAL, effort(2))
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_refuses_a_place_that_can_be_no_folder(load: Load, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelError, match="cannot be a folder"):
        search(load(), tmp_path / "file", GOAL, effort(2))


def test_refuses_a_model_without_a_choice(load: Load, tmp_path: Path) -> None:
    cargo = load("name: none\nstages: {clean: [clean]}")
    with pytest.raises(RecipeError, match="anything to choose"):
        search(cargo, tmp_path, GOAL, effort(2))


@pytest.mark.parametrize(
    "given", [{"evaluations": None}, {"evaluations": 0}, {"batch": 0}, {"strategy": "luck"}]
)
def test_refuses_efforts_that_make_no_sense(given: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match="search:"):
        Effort(**given)


def test_a_file_that_is_no_journal_stays_as_it_is(tmp_path: Path) -> None:
    for words in (b"mine\nwithout an end", b"model" * 9):
        path = tmp_path / "mine"
        path.write_bytes(words)
        with pytest.raises(RecipeError, match="no journal of a search"):
            Archive(str(path), "key", "run", space())
        assert path.read_bytes() == words


def test_files_of_the_user_stay_in_the_folder(load: Load, tmp_path: Path) -> None:
    mine = [tmp_path / name for name in ("plan-b.json", "plan-notes.txt")]
    for path in mine:
        path.write_text("mine")
    gone = tmp_path / "plan-0123456789ab.onnx"
    gone.write_text("of an earlier front")
    Folder(tmp_path, load(), GOAL).write([], Figures(1000, 1.0, 1.0, 1.0, 0.0), 0)
    assert [path.read_text() for path in mine] == ["mine"] * 2
    assert not gone.exists()


def test_of_equal_plans_the_front_has_the_same_whoever_came_first(
    load: Load, tmp_path: Path
) -> None:
    original = Figures(1000, 1.0, 1.0, 1.0, 0.0)
    figures = Figures(500, 1.0, 1.0, 1.0, 0.1)
    found = [Evaluation((k,), figures, f"{k}" * 12) for k in (1, 2)]
    folder = Folder(tmp_path, load(), GOAL)
    fronts = [folder.points(known, original) for known in (found, found[::-1])]
    assert fronts[0] == fronts[1]
    assert len(fronts[0]) == 1


@pytest.mark.parametrize(("strategy", "name"), [("auto", "plotly"), ("gp", "torch")])
def test_a_missing_library_is_told_before_any_work(
    load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, strategy: str, name: str
) -> None:
    known = [n for n in sys.modules if n == name or n.startswith(f"{name}.")]
    for module in (*known, name, "plotly.graph_objects" if name == "plotly" else name):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(RecipeError, match=f"{name} is needed"):
        search(load(), tmp_path / "out", GOAL, effort(2, strategy=strategy))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["sqlite:///{}/study.db", "{}/study.journal"])
def test_machines_share_a_study(kind: str, tmp_path: Path) -> None:
    storage = kind.format(tmp_path)
    made = space()
    one, two = (Archive(storage, "key", f"run {k}", made) for k in (1, 2))
    genome = made.untouched
    found = Evaluation(genome, Figures(1, 2.0, 3.0, 4.0, 0.5, 0.25, 0.125), "sha", 1.5)
    one.record(found)
    failed = Evaluation((1, *genome[1:]), None, trouble="it does not run")
    one.record(failed)
    assert two.news() == [found, failed]
    assert two.news() == []
    assert one.news() == []
    assert two.known[genome] == found
    with pytest.raises(RecipeError, match="another model"):
        Archive(storage, "other", "run", made)


def test_a_storage_that_cannot_be_opened_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="cannot be opened"):
        Archive(f"sqlite:///{tmp_path}/no/such/study.db", "key", "run", space())


def test_a_journal_that_a_kill_cut_short_is_read_to_its_last_whole_line(tmp_path: Path) -> None:
    made = space()
    archive = Archive(journal(tmp_path), "key", "run", made)
    archive.record(Evaluation(made.untouched, Figures(1, 2.0, 3.0, 4.0, 0.5), "sha"))
    path = Path(journal(tmp_path))
    path.write_bytes(path.read_bytes() + b'{"op_code": 4, "worker')
    again = Archive(journal(tmp_path), "key", "run", made)
    assert again.known.keys() == archive.known.keys()
    again.record(Evaluation((1, *made.untouched[1:]), None, trouble="it does not run"))
    assert Archive(journal(tmp_path), "key", "run", made).known.keys() == again.known.keys()
