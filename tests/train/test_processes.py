import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

torch = pytest.importorskip("torch", reason="the extra train isn't installed")

from onnxslim_tk.train.processes import count, gathered, processes, rank, threads
from tests.models import mlp, normal

_CALL = """
import sys
from onnxslim_tk import Options
from onnxslim_tk.pipeline.teaching import distill
from onnxslim_tk.plan.training import Training
from onnxslim_tk.plan.schedule import Schedule

teacher, student, out, data = sys.argv[1:]
schedule = Schedule(steps=20, batch=8, rate=5e-3, every=20)
report = distill(teacher, student, out, Options(data), Training(schedule))
if report is not None:
    print(report.training.looks[0].loss, report.training.looks[-1].loss)
"""


def disturbed(path: Path) -> Path:
    """The teacher's network, its weights disturbed."""
    proto = mlp()
    for tensor in proto.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        noisy = values + 0.3 * values.std() * normal(1, *values.shape)
        tensor.CopyFrom(onnx.numpy_helper.from_array(noisy.astype(np.float32), tensor.name))
    onnx.save(proto, path)
    return path


def free_port() -> int:
    with socket.socket() as some:
        some.bind(("127.0.0.1", 0))
        return int(some.getsockname()[1])


def test_two_processes_learn_what_one_does(tmp_path: Path) -> None:
    teacher, data = tmp_path / "teacher.onnx", tmp_path / "data.npz"
    onnx.save(mlp(), teacher)
    np.savez(data, x=normal(0, 48, 32))
    student = disturbed(tmp_path / "student.onnx")
    results = []
    for size in (1, 2):
        out = tmp_path / f"out{size}.onnx"
        call = [sys.executable, "-c", _CALL, *map(str, (teacher, student, out, data))]
        common = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1"}
        common["MASTER_PORT"] = str(free_port())
        running = [
            subprocess.Popen(
                call,
                env={**os.environ, **common, "RANK": str(k)},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for k in range(size)
        ]
        said = [process.communicate(timeout=120) for process in running]
        assert [process.returncode for process in running] == [0] * size, said
        # The others say and write nothing.
        assert not any(words for words, _ in said[1:])
        results.append([float(number) for number in said[0][0].split()])
        assert out.is_file()
    assert results[1][0] == pytest.approx(results[0][0], rel=0.01)
    assert results[1][1] < 0.7 * results[1][0]
    assert results[1][1] == pytest.approx(results[0][1], rel=0.05)


def test_alone_a_process_is_the_first_and_only_one() -> None:
    with processes() as is_first:
        assert is_first
    assert (rank(), count(), gathered(3)) == (0, 1, [3])


def test_threads_are_given_back() -> None:
    before = torch.get_num_threads()
    with threads(1):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before
