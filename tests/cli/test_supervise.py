import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

Run = Callable[..., Result]
ended_by_signals = import_module("onnxslim_tk.cli.supervise").ended_by_signals
posix = pytest.mark.skipif(os.name != "posix", reason="needs POSIX")

METRIC = """
import os, signal, time

def crash(outputs, labels):
    print("the last words")
    os.kill(os.getpid(), signal.SIGSEGV)

def wait(outputs, labels):
    open("waiting", "w").close()
    time.sleep(600)

def speak(outputs, labels):
    print("half of them")
    return 0.5
"""


def listening() -> None:
    """A shell that starts something in the background takes Ctrl-C away from it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module of the user's in the working folder."""
    (tmp_path / "their_metrics.py").write_text(METRIC)
    monkeypatch.chdir(tmp_path)


@posix
@pytest.mark.usefixtures("metrics")
def test_a_crash_is_one_line_that_names_model_and_step(
    run: Run, model: Path, samples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A process of its own is what nobody has to ask for.
    monkeypatch.delenv("ONNXSLIM_ISOLATE")
    # A busy machine would have its steps told.
    arguments = ("optimize", model, tmp_path / "out.onnx", "--samples", samples, "--quiet")
    result = run(*arguments, "--metric", "their_metrics:crash")
    assert result.exit_code == 1
    assert result.output == (
        "error: tiny.onnx: the worker crashed with SIGSEGV (the last words) in the step 'check'\n"
    )
    assert not (tmp_path / "out.onnx").exists()


@pytest.mark.usefixtures("metrics")
def test_a_users_code_runs_in_the_worker_and_its_words_stay_off_stdout(
    run: Run, model: Path, samples: Path, tmp_path: Path
) -> None:
    arguments = ("optimize", model, tmp_path / "out.onnx", "--samples", samples, "--isolate")
    result = run(*arguments, "--metric", "their_metrics:speak", "--json", "--exclude", "log*")
    assert result.exit_code == 0
    assert result.stdout.startswith("{")
    assert "half of them\n" in result.stderr
    assert "their_metrics" not in sys.modules


def test_wrong_usage_that_the_worker_finds_keeps_its_exit_code(
    run: Run, model: Path, tmp_path: Path
) -> None:
    result = run("optimize", model, tmp_path / "o.onnx", "--isolate", "--output-kind", "u=values")
    assert result.exit_code == 2
    assert "no output 'u'" in result.stderr


@pytest.mark.parametrize("verb", ["optimize", "plan", "pack", "validate", "inspect"])
def test_every_command_that_opens_a_model_may_do_so_apart(
    run: Run, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    more = {"validate": [model], "inspect": []}.get(verb, [tmp_path / "out"])
    here = run(verb, model, *more)

    def travelling(call: Any, *_: object) -> Any:
        """As a worker has it, but for the process."""
        return pickle.loads(pickle.dumps(pickle.loads(pickle.dumps(call))(lambda *_: None)))

    monkeypatch.setattr("onnxslim_tk.cli.supervise.isolated", travelling)
    apart = run(verb, model, *more, "--isolate")
    assert (here.exit_code, apart.exit_code) == (0, 0)
    assert apart.stdout.split()[:1] == here.stdout.split()[:1]


@pytest.mark.parametrize(
    "options",
    [
        ("--no-isolate", "--time-limit", "5"),
        ("--no-isolate", "--memory-limit", "1GB"),
        ("--isolate", "--memory-limit", "much"),
        ("--isolate", "--time-limit", "-1"),
    ],
)
def test_limits_that_cannot_count_are_wrong_usage(
    run: Run, model: Path, options: tuple[str, ...]
) -> None:
    result = run("inspect", model, *options)
    assert result.exit_code == 2
    assert "-limit" in result.stderr


@posix
@pytest.mark.usefixtures("metrics")
@pytest.mark.parametrize(
    ("number", "isolate"),
    [
        (signal.SIGINT, "--isolate"),
        (signal.SIGTERM, "--isolate"),
        (signal.SIGTERM, "--no-isolate"),
    ],
)
def test_a_signal_ends_a_run_with_one_line_and_no_trace(
    model: Path, samples: Path, tmp_path: Path, number: signal.Signals, isolate: str
) -> None:
    before = {*os.listdir(tmp_path), "waiting", "temporary"}
    (tmp_path / "temporary").mkdir()
    code = "from onnxslim_tk_start import main; main()"
    arguments = ["optimize", str(model), "out.onnx", "--samples", str(samples), isolate, "--quiet"]
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments, "--metric", "their_metrics:wait"],
        stderr=subprocess.PIPE,
        env={**os.environ, "TMPDIR": str(tmp_path / "temporary"), "PYTHONDONTWRITEBYTECODE": "1"},
        text=True,
        start_new_session=True,
        preexec_fn=listening,
    )
    while not (tmp_path / "waiting").exists():
        assert process.poll() is None
    # As a terminal does: to the whole group.
    os.killpg(process.pid, number)
    _, errors = process.communicate()
    assert process.returncode == 128 + number
    assert errors == "error: interrupted; nothing was written\n"
    assert set(os.listdir(tmp_path)) == before
    assert list((tmp_path / "temporary").glob("onnxslim-*")) == []


IMPORTING = """
import os, signal, sys

class Finder:
    def find_spec(name, *_):
        if name == sys.argv[1]:
            sys.argv[1:2] = []
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Finder)
from onnxslim_tk_start import main
main()
"""


@posix
@pytest.mark.parametrize("module", ["onnxslim_tk", "onnxruntime", "onnxslim_tk.cli.verbs"])
def test_a_signal_in_the_midst_of_imports_is_one_line_too(module: str) -> None:
    run = partial(subprocess.run, capture_output=True, text=True)
    ended = run([sys.executable, "-c", IMPORTING, module, "version"], preexec_fn=listening)
    assert ended.returncode == 130
    assert ended.stderr == "error: interrupted; nothing was written\n"
    assert ended.stdout == ""


@posix
def test_who_is_not_to_hear_signals_does_not() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", IMPORTING, "onnxslim_tk", "version"],
        capture_output=True,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    )
    assert (ended.returncode, ended.stderr) == (0, "")


def test_signals_are_handled_as_before_when_a_command_is_over() -> None:
    numbers = [signal.SIGINT, signal.SIGTERM]
    before = [signal.getsignal(number) for number in numbers]
    with ended_by_signals():
        assert [signal.getsignal(number) for number in numbers] != before
    assert [signal.getsignal(number) for number in numbers] == before


def test_an_existing_target_that_is_read_only_is_refused_at_once(
    run: Run, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out.onnx").write_bytes(b"old")
    monkeypatch.setattr(os, "access", lambda path, mode, **_: not mode & os.W_OK)
    result = run("optimize", model, tmp_path / "out.onnx")
    assert result.exit_code == 2
    assert "permission" in result.stderr
    assert (tmp_path / "out.onnx").read_bytes() == b"old"
