"""The strategies: one file each, one line each in :data:`STRATEGIES`."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from onnxslim_tk.search.strategies.auto import Auto
from onnxslim_tk.search.strategies.bayesian import GaussianProcess, TreeParzen
from onnxslim_tk.search.strategies.differentiable import Differentiable
from onnxslim_tk.search.strategies.evolutionary import Evolutionary
from onnxslim_tk.search.strategies.knapsack import Knapsack
from onnxslim_tk.search.strategies.local import LocalSwaps
from onnxslim_tk.search.strategies.regularized import Regularized
from onnxslim_tk.search.strategies.reinforcement import Reinforcement
from onnxslim_tk.search.strategies.strategy import Strategy
from onnxslim_tk.search.strategies.uniform import Random

STRATEGIES: Final[Mapping[str, type[Strategy]]] = MappingProxyType(
    {
        strategy.name: strategy
        for strategy in (
            Auto,
            Knapsack,
            Evolutionary,
            Regularized,
            TreeParzen,
            GaussianProcess,
            Reinforcement,
            Differentiable,
            LocalSwaps,
            Random,
        )
    }
)
"""Every strategy by the name that ``--strategy`` takes."""
NEED_TORCH: Final = frozenset(
    strategy.name for strategy in (GaussianProcess, Reinforcement, Differentiable)
)
"""The strategies that can't do without PyTorch."""
