import os
import pickle
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxslim_tk import errors
from onnxslim_tk.errors import BudgetError, OnnxSlimError, RecipeError, SessionError
from onnxslim_tk.measure.metrics import METRICS
from onnxslim_tk.measure.samples import Samples
from onnxslim_tk.measure.validate import Progress
from onnxslim_tk.pipeline import Limits, Options, isolated, optimize

# Calls are local functions: a worker gets them by value, wherever the tests lie.
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux")
posix = pytest.mark.skipif(os.name != "posix", reason="needs POSIX")


def nowhere(step: str, done: int, total: int) -> None:
    pass


@pytest.fixture
def tidy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty place for temporary files."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


def test_the_result_comes_back_with_the_steps_in_order_and_the_words(
    tidy: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def call(progress: Progress) -> tuple[int, str]:
        import tempfile

        progress("first", 0, 2)
        print("a user's metric speaks")
        progress("first", 2, 2)
        os.write(2, b"the runtime, too\n")
        progress("second", 0, 1)
        return os.getpid(), tempfile.mkdtemp()

    steps: list[tuple[str, int, int]] = []
    words: list[str] = []
    process, folder = isolated(call, "m.onnx", lambda *step: steps.append(step), heard=words.append)
    assert process != os.getpid()
    assert Path(folder).parent.parent == tidy
    assert steps == [("first", 0, 2), ("first", 2, 2), ("second", 0, 1)]
    assert sorted("".join(words).splitlines()) == ["a user's metric speaks", "the runtime, too"]
    assert os.listdir(tidy) == []
    assert capfd.readouterr() == ("", "")


@posix
@pytest.mark.parametrize(
    ("end", "words"),
    [
        (signal.SIGSEGV, "the worker crashed with SIGSEGV (bad_alloc)"),
        (signal.SIGKILL, "the worker was killed, most likely for want of memory,"),
    ],
)
def test_a_worker_that_dies_is_one_sentence_with_model_and_step(
    tidy: Path, capfd: pytest.CaptureFixture[str], end: signal.Signals, words: str
) -> None:
    def call(progress: Progress) -> None:
        progress("numbers: observe", 3, 20)
        os.write(2, b"terminate called\nbad_alloc\n")
        os.kill(os.getpid(), end)

    with pytest.raises(SessionError) as caught:
        isolated(call, "m.onnx", nowhere)
    assert str(caught.value) == f"m.onnx: {words} in the step 'numbers: observe'"
    assert os.listdir(tidy) == []
    assert capfd.readouterr() == ("", "")


def test_a_worker_that_hangs_is_ended(tidy: Path) -> None:
    def call(progress: Progress) -> None:
        for k in range(6):
            progress("check", k, 6)
            time.sleep(0.3)
        progress("judge", 0, 1)
        time.sleep(600)

    with pytest.raises(SessionError, match=r"no sign of life for 1.5 s in the step 'judge'"):
        isolated(call, "m.onnx", nowhere, Limits(seconds=1.5))
    assert os.listdir(tidy) == []


@linux
def test_a_worker_that_wants_too_much_memory_is_refused_it() -> None:
    def call(progress: Progress) -> None:
        progress("unpack", 0, 1)
        np.ones(10**8)

    with pytest.raises(SessionError, match=r"m: the step 'unpack' needs more memory than 0.6 GB"):
        isolated(call, "m", nowhere, Limits(memory=600_000_000))


def test_our_errors_come_back_as_themselves() -> None:
    def call(progress: Progress) -> None:
        raise BudgetError("budget: it does not hold")

    with pytest.raises(BudgetError, match=r"^budget: it does not hold$") as caught:
        isolated(call, "m", nowhere)
    assert caught.value.exit_code == 3
    tree = [e for e in vars(errors).values() if isinstance(e, type) and issubclass(e, Exception)]
    assert len(tree) > 5
    for kind in tree:
        assert issubclass(kind, OnnxSlimError)
        again = pickle.loads(pickle.dumps(kind("who: rule")))
        assert (type(again), str(again)) == (kind, "who: rule")


def test_a_whole_run_with_all_its_options_may_go_apart(
    model: Path, samples: Samples, tmp_path: Path
) -> None:
    labelled = Samples(samples.feeds, np.arange(40) % 8)
    options = Options(calibration=labelled, metric=METRICS["accuracy"])
    here, apart = tmp_path / "here.onnx", tmp_path / "apart.onnx"

    def call(progress: Progress) -> Any:
        return optimize(model, apart, "balanced", replace(options, progress=progress))

    steps: list[str] = []
    report = isolated(call, model.name, lambda step, done, total: steps.append(step))
    assert report.plan == optimize(model, here, "balanced", options).plan
    assert apart.read_bytes() == here.read_bytes()
    assert {"read the model", "numbers: observe", "numbers: quantize", "write"} <= set(steps)


def test_a_machine_that_starts_no_worker_is_told_of(
    tidy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tidy / "none"))
    with pytest.raises(SessionError, match=r"m: no worker process can be started: .*No such file"):
        isolated(lambda progress: None, "m", nowhere)


def test_limits_out_of_range_are_refused() -> None:
    with pytest.raises(RecipeError, match="seconds must be above 0, got 0"):
        Limits(seconds=0)
    with pytest.raises(RecipeError, match=r"must be at least \d+ bytes, got 5|can't limit"):
        Limits(memory=5)


SUPERVISOR = """
import os, sys, time
from onnxslim_tk.pipeline import isolated

def call(progress):
    progress(str(os.getpid()), 0, 1)
    time.sleep(600)

isolated(call, "m", lambda step, done, total: print(step, flush=True))
"""


@linux
def test_a_worker_ends_with_its_supervisor_and_takes_its_files_along(tidy: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", SUPERVISOR],
        stdout=subprocess.PIPE,
        env={**os.environ, "TMPDIR": str(tidy)},
        text=True,
    )
    assert process.stdout is not None
    worker = int(process.stdout.readline())
    assert len(list(tidy.glob("onnxslim-*"))) == 1
    process.kill()
    process.communicate()
    until = time.monotonic() + 30
    while Path(f"/proc/{worker}").exists() and time.monotonic() < until:
        time.sleep(0.02)
    assert not Path(f"/proc/{worker}").exists()
    assert list(tidy.glob("onnxslim-*")) == []
