"""Search over whole plans: a space, objectives, strategies, and workers near or far."""

from onnxslim_tk.search.cargo import Cargo, pack_up
from onnxslim_tk.search.goal import Goal
from onnxslim_tk.search.run import Effort, search
from onnxslim_tk.search.workers import Place

__all__ = ["Cargo", "Effort", "Goal", "Place", "pack_up", "search"]
