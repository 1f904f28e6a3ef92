"""Bayesian search: a model of what plans come to says where to look next."""

import warnings
from typing import Any, ClassVar, Final

from onnxslim_tk.search.extra import torch
from onnxslim_tk.search.strategies.sampled import Sampled

_SEEDS: Final = 10


class TreeParzen(Sampled):
    """Tree-structured Parzen estimators over all genes (Bergstra et al., 2011), by optuna."""

    name: ClassVar[str] = "bayesian"
    seeds = _SEEDS

    def sampler(self, library: Any) -> Any:
        """The sampler of optuna."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return library.samplers.TPESampler(
                n_startup_trials=_SEEDS,
                multivariate=True,
                constant_liar=True,
                seed=self._problem.seed,
            )


class GaussianProcess(Sampled):
    """A Gaussian process with expected hypervolume (Rasmussen and Williams, 2006), by optuna.

    For small spaces: its time grows with genes and evaluations. Needs PyTorch.
    """

    name: ClassVar[str] = "gp"
    seeds = _SEEDS

    def sampler(self, library: Any) -> Any:
        """The sampler of optuna."""
        torch()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return library.samplers.GPSampler(
                n_startup_trials=_SEEDS,
                deterministic_objective=True,
                seed=self._problem.seed,
            )
