"""A model of 2.7 GB with its weights in a data file, through the whole way: memory and time.

``python -m benchmarks.big FOLDER`` writes the model there, runs ``onnxslim optimize`` on it and
prints the peaks of memory of all its processes, and the time. ``Pss`` is what is resident, pages
of files included, shared ones counted once; ``Anonymous`` is what only they hold. It takes up to
6 GB of disk.
"""

import argparse
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

import numpy as np
import onnx
from onnx import TensorProto, helper

_WIDTH: Final = 8192
_PERIOD: Final = 0.05
_MEMORY: Final = ("Rss", "Pss", "Anonymous")


def write_mlp(folder: Path, layers: int, width: int = _WIDTH) -> Path:
    """Write ``big.onnx``, ``x (N, width)`` to ``y``, and ``big.bin`` with its float32 weights."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    graph = onnx.GraphProto(name="big")
    value = "x"
    size = 4 * width * width
    with (folder / "big.bin").open("wb") as file:
        for k in range(layers):
            weight = rng.standard_normal((width, width), np.float32)
            file.write((weight * np.float32(1.4 / width**0.5)).tobytes())
            tensor = graph.initializer.add(name=f"w{k}", data_type=TensorProto.FLOAT)
            tensor.dims.extend((width, width))
            tensor.data_location = TensorProto.EXTERNAL
            entries = {"location": "big.bin", "offset": str(k * size), "length": str(size)}
            for key, text in entries.items():
                tensor.external_data.add(key=key, value=text)
            made = f"h{k}" if k < layers - 1 else "y"
            graph.node.append(helper.make_node("MatMul", [value, f"w{k}"], [f"m{k}"]))
            graph.node.append(helper.make_node("Relu", [f"m{k}"], [made]))
            value = made
    shape: list[int | str | None] = ["N", width]
    graph.input.append(helper.make_tensor_value_info("x", TensorProto.FLOAT, shape))
    graph.output.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, shape))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    path = folder / "big.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def watched(command: list[str]) -> dict[str, float]:
    """Run ``command``; its peaks of memory in MB, its seconds, its exit code, children included."""
    started = time.monotonic()
    peaks = dict.fromkeys(_MEMORY, 0.0)
    process = subprocess.Popen(command)
    while process.poll() is None:
        now = dict.fromkeys(peaks, 0.0)
        for pid in _family(process.pid):
            for key, value in _memory(pid).items():
                now[key] = now.get(key, 0.0) + value
        peaks = {key: max(peaks[key], now[key]) for key in peaks}
        time.sleep(_PERIOD)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    figures = {"CPU seconds": used.ru_utime + used.ru_stime, "seconds": time.monotonic() - started}
    return {**peaks, **figures, "exit": float(process.returncode)}


def _family(pid: int) -> list[int]:
    found = [pid]
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            for child in task.read_text().split():
                found += _family(int(child))
        except OSError:
            continue
    return found


def _memory(pid: int) -> dict[str, float]:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    except OSError:
        return {}
    return {line.split(":")[0]: int(line.split()[1]) / 1e3 for line in lines}


def main() -> None:
    """Write, run, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, default=10)
    parser.add_argument("options", nargs="*", help="what follows -- goes to onnxslim optimize")
    asked = parser.parse_args()
    path = write_mlp(asked.folder, asked.layers)
    size = sum(file.stat().st_size for file in asked.folder.glob("big.*")) / 1e6
    entry = "from onnxslim_tk_start import main; main()"
    command = [sys.executable, "-c", entry, "optimize", str(path), str(asked.folder / "out.onnx")]
    found = watched([*command, *asked.options])
    print(f"model {size:.0f} MB")
    for key, value in found.items():
        share = f" MB, {value / size:.2f} of the model" if key in _MEMORY else ""
        print(f"{key} {value:.1f}{share}")
    for file in sorted(asked.folder.glob("out.onnx*")):
        print(f"{file.name} {file.stat().st_size / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
