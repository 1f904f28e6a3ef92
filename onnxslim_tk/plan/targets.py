"""Targets: what a runtime runs fast, as plain numbers that choose settings in place of clocks."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType


@dataclass(frozen=True, slots=True)
class Target:
    """A runtime on a kind of machine.

    ``integer_cost`` is the time of an int8 operator over that of the float one, by operator;
    ``dynamic_cost`` the same where the range of the input is found in each run;
    ``channel_step`` the multiple that kept channel counts are rounded to; ``input_step`` that of
    the input channels for which an int8 convolution has its fast kernel;
    ``factor_share`` the share of multiply-accumulates below which two layers beat one.
    """

    name: str
    channel_step: int
    input_step: int
    factor_share: float
    integer_cost: Mapping[str, float] = field(default_factory=dict)
    dynamic_cost: Mapping[str, float] = field(default_factory=dict)

    def integer_saving(self, kind: str, macs: int | None) -> float:
        """Float multiply-accumulates saved when an operator of ``macs`` runs in int8."""
        return (1.0 - self.integer_cost.get(kind, 1.0)) * (macs or 0)

    def dynamic_saving(self, kind: str, macs: int | None) -> float:
        """Float multiply-accumulates saved when it runs in int8 with ranges found in each run."""
        return (1.0 - self.dynamic_cost.get(kind, 1.0)) * (macs or 0)


ONNXRUNTIME_CPU = Target(
    name="onnxruntime-cpu",
    channel_step=16,
    input_step=4,
    factor_share=0.75,
    integer_cost=MappingProxyType({"Conv": 0.3, "Gemm": 0.4, "MatMul": 0.4}),
    dynamic_cost=MappingProxyType({"Gemm": 0.45, "MatMul": 0.45}),
)
"""onnxruntime on x86-64 with VNNI, one thread (medians of interleaved runs)."""
