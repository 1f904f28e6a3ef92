"""Evolution: NSGA-II on whole plans, seeded with the knapsack's."""

from typing import Any, ClassVar, Final

from onnxslim_tk.search.strategies.sampled import Sampled

_POPULATION: Final = 16


class Evolutionary(Sampled):
    """NSGA-II (Deb et al., 2002) by optuna, with limits as constraints.

    The knapsack's points stand in the first generation, so that it starts where additive errors
    lead and goes on where they mislead.
    """

    name: ClassVar[str] = "evolutionary"
    seeds = _POPULATION - 4

    def sampler(self, library: Any) -> Any:
        """The sampler of optuna."""
        return library.samplers.NSGAIISampler(population_size=_POPULATION, seed=self._problem.seed)
