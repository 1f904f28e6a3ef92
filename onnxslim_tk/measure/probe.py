"""Probing: what one rewrite alone does to the model's outputs."""

from collections.abc import Callable, Sequence

import numpy as np

from onnxslim_tk.errors import SessionError
from onnxslim_tk.graph.model import Model, to_proto
from onnxslim_tk.measure.runtime import Feed, Session


class Probe:
    """Measures rewrites of ``model`` by their error at its outputs on ``feeds``."""

    def __init__(self, model: Model, feeds: Sequence[Feed]) -> None:
        self._model = model
        self._feeds = feeds
        session = Session(to_proto(model).SerializeToString())
        names = [o.name for o in session.outputs if o.dtype is not None and o.dtype.kind == "f"]
        self._names = names
        self._reference = [session.run(feed, names) for feed in feeds]

    def error(self, rewrite: Callable[[Model], None]) -> float:
        """Relative squared error of the float outputs after ``rewrite``, the mean over outputs.

        Infinite where the rewritten model does not run or gives what is not finite.
        """
        twin = self._model.copy()
        rewrite(twin)
        try:
            session = Session(to_proto(twin).SerializeToString())
            values = [session.run(feed, self._names) for feed in self._feeds]
        except SessionError:
            return float("inf")
        errors = []
        for name in self._names:
            pairs = [(a[name], b[name]) for a, b in zip(self._reference, values, strict=True)]
            if any(a.shape != b.shape for a, b in pairs):
                return float("inf")
            noise = sum(float(np.square(a.astype(np.float64) - b).sum()) for a, b in pairs)
            energy = sum(float(np.square(a.astype(np.float64)).sum()) for a, _ in pairs)
            errors.append(noise / max(energy, 1e-30))
        worst = float(np.mean(errors)) if errors else 0.0
        return worst if np.isfinite(worst) else float("inf")
