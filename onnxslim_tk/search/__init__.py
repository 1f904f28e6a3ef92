"""Search over whole plans: a space, objectives, strategies, and workers near or far."""

from onnxslim_tk.pipeline.workers import Place
from onnxslim_tk.search.cargo import Cargo, pack_up
from onnxslim_tk.search.goal import Goal
from onnxslim_tk.search.run import Effort, search

__all__ = ["Cargo", "Effort", "Goal", "Place", "pack_up", "search"]
