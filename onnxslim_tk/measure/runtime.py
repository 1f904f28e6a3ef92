"""The only door to onnxruntime: a model and arrays go in, arrays and figures come out."""

import re
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import onnxruntime as ort
from google.protobuf.message import EncodeError
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as ort_state

from onnxslim_tk.errors import ModelError, SessionError
from onnxslim_tk.graph.mapped import place_in_file, release_pages
from onnxslim_tk.graph.stored import Stored
from onnxslim_tk.graph.weights import is_apart, is_plain, refer, tensors

Feed = Mapping[str, NDArray[Any]]
"""One run's inputs by name."""
Opened = bytes | Path | Stored
"""A model: its file's content, its file, or a model as it lies in several files."""

_DTYPES: Final[Mapping[str, type[Any]]] = {
    "float": np.float32,
    "double": np.float64,
    "float16": np.float16,
    "int8": np.int8,
    "int16": np.int16,
    "int32": np.int32,
    "int64": np.int64,
    "uint8": np.uint8,
    "uint16": np.uint16,
    "uint32": np.uint32,
    "uint64": np.uint64,
    "bool": np.bool_,
    "string": np.object_,
}

# Its exceptions share no root but Exception, and the bindings add two of Python's own.
_FAILURES: Final[tuple[type[Exception], ...]] = (
    *(e for e in vars(ort_state).values() if isinstance(e, type) and issubclass(e, Exception)),
    RuntimeError,
    ValueError,
)

# What a message holds beside its sense: status codes, places in the runtime's own source, paths.
_NOISE: Final = re.compile(
    r"\[ONNXRuntimeError\] : \d+ : \w+ : "
    r"|Load model from .*? failed: ?"
    r"|Non-zero status code returned while "
    r"|\S*onnxruntime/core/\S+:\d+ (?:[^()]|\((?:[^()]|\([^()]*\))*\))*?::\w+\(.*?\)(?: const)? "
    r"|\b\w+\.(?:h|cc):\d+ \w+ (?=[A-Z])"
    r"|Please fix either the inputs/outputs or the model\."
)
_NEWER: Final = re.compile(
    r"Opset (\d+) is under development .* support for domain (\S+) is till opset (\d+)"
)
_LONGEST_MESSAGE: Final = 400
_BIG: Final = 1 << 28
"""Bytes of weights from which on the runtime is lent arrays instead of one message."""
_TOGETHER: Final = 1 << 30
"""Bytes of models that are loaded at once; bigger ones are one after the other."""
_PLAIN_ORDER: Final = "session.disable_prepacking"
_LEFT_OUT: Final = "optimization.disable_specified_optimizers"
_FOLDER: Final = "session.model_external_initializers_file_folder_path"
_KNOWS_FOLDER: Final = tuple(int(part) for part in ort.__version__.split(".")[:2]) >= (1, 21)
"""Whether the runtime looks for data files where it is told to; earlier ones borrow arrays."""
_LENT: Final = 1 << 20
"""Bytes of the smallest array that is lent: the runtime reads small constants while it loads."""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """An input or output of a model.

    ``dtype`` is None for what numpy can't hold (sequences, maps, optionals, bfloat16, 4-bit and
    8-bit floats), ``object`` for strings. A dimension is a number, a symbol, or None; the shape
    of a tensor of unknown rank is ``()``, as is a scalar's: the runtime tells them not apart.
    """

    name: str
    dtype: np.dtype[Any] | None
    shape: tuple[int | str | None, ...]


class Session:
    """A model loaded for running on the CPU.

    ``optimize=False`` runs the graph as it is written. ``lean`` leaves weights as they lie, neither
    decoded at load nor copied into the order that kernels like best: loading takes no memory then,
    and running more time. One thread, the default, repeats its results to the bit. Raises
    SessionError when the runtime refuses the model.
    """

    def __init__(
        self, model: Opened, *, optimize: bool = True, threads: int = 1, lean: bool = False
    ) -> None:
        self._session = _open(model, _options(optimize, threads, lean))
        try:
            self.inputs = tuple(_info(value) for value in self._session.get_inputs())
            self.outputs = tuple(_info(value) for value in self._session.get_outputs())
        except UnicodeDecodeError as error:
            raise SessionError("session: names of inputs and outputs must be UTF-8") from error

    def run(self, feed: Feed, names: Iterable[str] | None = None) -> dict[str, NDArray[Any]]:
        """The named outputs for ``feed``, in order; by default all that are tensors.

        Raises SessionError for a feed that doesn't fit, a name that isn't an output, an output
        that isn't a tensor, and a failing operator.
        """
        wanted = [o.name for o in self.outputs if o.dtype] if names is None else list(names)
        if not wanted:
            return {}
        arrays = {name: np.asarray(value) for name, value in feed.items()}
        try:
            values = self._session.run(wanted, arrays)
        except _FAILURES as error:
            raise SessionError(f"session: {_one_line(error)}") from error
        for name, value in zip(wanted, values, strict=True):
            if not isinstance(value, np.ndarray):
                raise SessionError(
                    f"session: output {name!r} must be a tensor, got {type(value).__name__}"
                )
        return dict(zip(wanted, values, strict=True))


@dataclass(frozen=True, slots=True)
class Running:
    """An operator in the graph that the runtime really runs, and the names of its tensors."""

    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def running_operators(model: Opened) -> Counter[str]:
    """How often each operator type stands in the graph that the runtime really runs.

    Raises SessionError when the runtime refuses the model.
    """
    return Counter(node.op for node in running_nodes(model))


def running_nodes(model: Opened) -> list[Running]:
    """The operators of the graph that the runtime really runs.

    That is the graph after the runtime's own folding, fusion and layout changes, bodies of If, Loop
    and Scan included. Raises SessionError when the runtime refuses the model.
    """
    with tempfile.TemporaryDirectory(prefix="onnxslim-") as folder:
        path = Path(folder) / "optimized.onnx"
        options = _options(optimize=True, threads=1)
        options.add_session_config_entry(_PLAIN_ORDER, "1")
        options.optimized_model_filepath = str(path)
        # Beside the graph, so that a big model stays under protobuf's 2 GB and parses fast.
        options.add_session_config_entry(
            "session.optimized_model_external_initializers_file_name", "weights.bin"
        )
        options.add_session_config_entry(
            "session.optimized_model_external_initializers_min_size_in_bytes", "1024"
        )
        _open(model, options)
        proto = onnx.load(path, load_external_data=False)
    return list(_running(proto.graph))


def fit_together(*models: Opened) -> bool:
    """Whether models are small enough for their sessions to be open side by side."""
    return sum(map(_size, models)) <= _TOGETHER


def is_big(model: Opened) -> bool:
    """Whether a model is better run with its weights where they are than decoded and copied."""
    return _size(model) >= _BIG


def _size(model: Opened) -> int:
    return model.stat().st_size if isinstance(model, Path) else len(model)


def runtime_version() -> str:
    """The version of onnxruntime that judges."""
    return str(ort.__version__)


def _options(optimize: bool, threads: int, lean: bool = False) -> Any:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    if lean:
        options.add_session_config_entry(_PLAIN_ORDER, "1")
        options.add_session_config_entry(_LEFT_OUT, "ConstantFolding")
        # By default, all weights would be decoded before the first of them is read.
        options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
    level = ort.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimize else level.ORT_DISABLE_ALL
    return options


def _open(model: Opened, options: Any) -> Any:
    # The runtime maps files and takes copies on its own: what we read of them has served its time.
    release_pages()
    source = _lent(model, options) if isinstance(model, Stored) else model
    if isinstance(source, Path) and not source.is_file():
        raise SessionError(f"session: no such file: {source}")
    opened = str(source) if isinstance(source, Path) else source
    try:
        # Its fallback tries the same again, and prints.
        return ort.InferenceSession(
            opened, options, providers=["CPUExecutionProvider"], enable_fallback=0
        )
    except _FAILURES as error:
        raise SessionError(f"session: {_one_line(error)}") from error


def _lent(stored: Stored, options: Any) -> bytes | Path:
    """What to open of a model whose weights lie apart.

    ``options`` get the folder of big weights that lie in files, for the runtime to map, and the
    arrays of those that lie nowhere yet, which it copies; before 1.21 it copies all.
    """
    if stored.is_single:
        return stored.head
    if stored.path is not None:
        return stored.path
    proto = stored.proto()
    names, values = [], []
    folder: Path | None = None
    outermost = len(proto.graph.initializer)
    for position, tensor in enumerate(tensors(proto)):
        if not is_apart(tensor):
            continue
        raw = stored.weights.raw(tensor)
        lend = stored.weights.size >= _BIG and position < outermost and is_plain(tensor)
        lend = lend and raw.nbytes >= _LENT
        file, offset = (lend and _KNOWS_FOLDER and place_in_file(raw)) or (None, 0)
        if file is not None and folder in (None, file.parent):
            folder = file.parent
            refer(tensor, file.name, str(offset), str(raw.nbytes))
        elif lend:
            names.append(tensor.name)
            array = np.require(stored.weights.values(tensor), requirements=("C", "A"))
            values.append(ort.OrtValue.ortvalue_from_numpy(array))
        else:
            stored.weights.fill(tensor)
    if folder is not None:
        options.add_session_config_entry(_FOLDER, str(folder))
    if names:
        options.add_external_initializers(names, values)
    try:
        return bytes(proto.SerializeToString())
    except (EncodeError, ValueError) as error:
        raise ModelError("model: it takes over 2 GB beside its big weights") from error


def _one_line(error: Exception) -> str:
    text = _NOISE.sub("", " ".join(str(error).split())).strip()
    if newer := _NEWER.search(text):
        needed, domain, known = newer.groups()
        of = "" if domain == "ai.onnx" else f" of {domain}"
        return f"the model needs operator set {needed}{of}, the runtime knows up to {known}"
    if len(text) > _LONGEST_MESSAGE:
        text = text[: _LONGEST_MESSAGE - 3] + "..."
    return text or type(error).__name__


def _info(value: Any) -> TensorInfo:
    matched = re.fullmatch(r"tensor\((\w+)\)", value.type)
    kind = _DTYPES.get(matched.group(1)) if matched else None
    # Some exporters write "?" for a dimension that they don't know: no symbol, it ties nothing.
    dims = tuple(
        None if d in ("", "?") or (isinstance(d, int) and d < 0) else d for d in value.shape
    )
    return TensorInfo(value.name, None if kind is None else np.dtype(kind), dims)


def _running(graph: onnx.GraphProto) -> Iterator[Running]:
    for node in graph.node:
        yield Running(node.op_type, tuple(node.input), tuple(node.output))
        for attribute in node.attribute:
            for body in (attribute.g, *attribute.graphs):
                yield from _running(body)
