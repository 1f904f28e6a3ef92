"""Targets: how long operators take on a runtime, as plain numbers in place of clocks."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

_BLOCK: Final = 16


@dataclass(frozen=True, slots=True)
class Work:
    """What an operator has to do in one run.

    ``macs`` are multiply-accumulates (of a pool: values that it looks at), ``outputs`` the values
    that it gives, ``patches`` those that a kernel of more than one position gathers for one
    group, ``weights`` its weights. ``channels`` are those that one group reads, and those that
    all groups give.
    """

    kind: str
    outputs: int
    macs: int = 0
    patches: int = 0
    weights: int = 0
    channels: tuple[int, int] = (1, 1)
    groups: int = 1

    @property
    def is_depthwise(self) -> bool:
        """Whether each channel has a kernel of its own."""
        return self.groups > 1 and self.channels == (1, self.groups)


@dataclass(frozen=True, slots=True)
class Speed:
    """A kernel's time in microseconds: a start, and units of work over what is done of each in one.

    ``start`` holds what the runtime does around a node. What has no rate costs nothing.
    """

    start: float
    macs: float = 0.0
    outputs: float = 0.0
    patches: float = 0.0
    weights: float = 0.0

    def time(self, work: Work) -> float:
        """Microseconds for ``work``."""
        amounts = (
            (work.macs, self.macs),
            (work.outputs, self.outputs),
            (work.patches, self.patches),
            (work.weights, self.weights),
        )
        return self.start + sum(amount / rate for amount, rate in amounts if rate)


@dataclass(frozen=True, slots=True)
class Target:
    """A runtime on a kind of machine.

    ``floats`` and ``integers`` are the speeds of kernels in float32 and in int8, ``dynamic`` those
    of int8 kernels that find the range of their input in each run; a convolution has a row for
    each form that the runtime treats alike (``depthwise``, ``narrow``: fewer than 16 channels).
    ``channel_step`` is the multiple that kept channel counts are rounded to; ``input_step`` that of
    the input channels for which an int8 convolution has its fast kernel;
    ``factor_share`` the share of multiply-accumulates below which two layers beat one.
    """

    name: str
    channel_step: int
    input_step: int
    factor_share: float
    floats: Mapping[str, Speed]
    integers: Mapping[str, Speed]
    dynamic: Mapping[str, Speed]

    def float_time(self, work: Work) -> float:
        """Microseconds of an operator in float32; nothing for what only renames values."""
        padded = work
        if work.kind == "Conv" and (work.is_depthwise or _form(work) == "Conv"):
            # Floats lie in blocks of channels, and a block that is not full takes as long.
            padded = _in_blocks(work)
        return self._of(self.floats, _form(work), padded)

    def integer_time(self, work: Work) -> float:
        """Microseconds in int8, codes in and codes out; a matrix product may give floats."""
        form = _form(work)
        if form == "depthwise" and work.groups % self.channel_step:
            return min(self.odd_time(work), self.widened_time(work))
        return self._of(self.integers, form, work)

    def odd_time(self, work: Work) -> float:
        """Microseconds of a depthwise int8 convolution whose channels don't fill the last block."""
        return self._of(self.integers, "odd depthwise", work)

    def widened_time(self, work: Work) -> float:
        """The same where zeros fill the last block, put in before it and cut off behind it."""
        wide = _in_blocks(work)
        places = Work("widen", wide.outputs, patches=work.outputs // work.groups)
        return self._of(self.integers, "depthwise", wide) + self._of(self.integers, "widen", places)

    def dynamic_time(self, work: Work) -> float:
        """Microseconds in int8, floats in and out, with ranges found in each run."""
        if work.kind not in self.dynamic:
            return self.float_time(work)
        return self._of(self.dynamic, work.kind, work)

    def time_of_macs(self, macs: int) -> float:
        """Microseconds that ``macs`` multiply-accumulates take in a big float layer."""
        return macs / self.floats["Conv"].macs

    def _of(self, speeds: Mapping[str, Speed], form: str, work: Work) -> float:
        return speeds[form].time(work) if form in speeds else 0.0


def _form(work: Work) -> str:
    """The row of the table for an operator."""
    if work.kind == "Conv":
        if work.is_depthwise:
            return "depthwise"
        return (
            "narrow" if min(work.channels[0], work.channels[1] // work.groups) < _BLOCK else "Conv"
        )
    return work.kind


def _in_blocks(work: Work) -> Work:
    """``work`` with the last block of channels filled up."""
    read, given = work.channels
    wide = -(-given // _BLOCK) * _BLOCK
    share = wide / given
    more = share if work.is_depthwise else share * (-(-read // _BLOCK) * _BLOCK) / read
    return Work(
        work.kind,
        round(work.outputs * share),
        round(work.macs * more),
        work.patches,
        round(work.weights * more),
        (read, wide),
        wide if work.is_depthwise else work.groups,
    )


_ELEMENTWISE: Final = Speed(0.2, outputs=11e3)

ONNXRUNTIME_CPU = Target(
    name="onnxruntime-cpu",
    channel_step=_BLOCK,
    input_step=4,
    factor_share=0.75,
    floats=MappingProxyType(
        {
            "Conv": Speed(0.5, macs=111e3),
            "narrow": Speed(0.5, macs=111e3, outputs=2.5e3, patches=5.5e3),
            "depthwise": Speed(0.3, macs=85e3, outputs=13e3),
            "Gemm": Speed(0.2, macs=107e3, weights=30e3),
            "MatMul": Speed(0.2, macs=107e3, weights=17e3),
            "Add": _ELEMENTWISE,
            "AveragePool": Speed(0.3, macs=30e3),
            "BatchNormalization": _ELEMENTWISE,
            "Clip": _ELEMENTWISE,
            "Concat": Speed(0.5, outputs=10e3),
            "Elu": Speed(0.2, outputs=2e3),
            "GlobalAveragePool": Speed(0.3, macs=20e3),
            "HardSigmoid": _ELEMENTWISE,
            "HardSwish": Speed(0.2, outputs=5.3e3),
            "LeakyRelu": _ELEMENTWISE,
            "Max": _ELEMENTWISE,
            "MaxPool": Speed(0.3, macs=60e3),
            "Min": _ELEMENTWISE,
            "Mul": _ELEMENTWISE,
            "Pad": Speed(0.6, outputs=5e3),
            "PRelu": _ELEMENTWISE,
            "Relu": Speed(0.2, outputs=16e3),
            "Resize": Speed(1.5, outputs=3e3),
            "Sigmoid": Speed(0.2, outputs=4.5e3),
            "Sub": _ELEMENTWISE,
            "Tanh": Speed(0.2, outputs=4.5e3),
            "Div": _ELEMENTWISE,
            "Transpose": Speed(0.5, outputs=3e3),
        }
    ),
    integers=MappingProxyType(
        {
            "Conv": Speed(0.7, macs=460e3, outputs=17e3, patches=23e3),
            "narrow": Speed(0.7, macs=460e3, outputs=3e3, patches=10e3),
            "depthwise": Speed(0.8, macs=60e3, patches=1.6e3),
            "odd depthwise": Speed(1.2, macs=17.5e3, patches=0.95e3),
            "widen": Speed(0.8, outputs=5.3e3, patches=85.0),
            "Gemm": Speed(0.7, macs=410e3, outputs=10e3, weights=68e3),
            "MatMul": Speed(0.7, macs=410e3, outputs=10e3, weights=68e3),
            "Add": Speed(0.25, outputs=11e3),
            "AveragePool": Speed(0.5, macs=8e3),
            "Clip": Speed(0.3, outputs=12e3),
            "Concat": Speed(0.6, outputs=20e3),
            "GlobalAveragePool": Speed(0.5, macs=12e3),
            "HardSwish": Speed(0.7, outputs=5.2e3),
            "MaxPool": Speed(0.8, macs=38e3),
            "Mul": Speed(0.3, outputs=5.6e3),
            "Pad": Speed(0.6, outputs=8e3),
            "Resize": Speed(1.5, outputs=3e3),
            "Sigmoid": Speed(0.3, outputs=9e3),
            "Transpose": Speed(0.5, outputs=5e3),
            "QuantizeLinear": Speed(0.3, outputs=12e3),
            "DequantizeLinear": Speed(0.3, outputs=17e3),
        }
    ),
    dynamic=MappingProxyType(
        {
            "Gemm": Speed(1.0, macs=340e3, outputs=6e3, weights=68e3),
            "MatMul": Speed(1.0, macs=340e3, outputs=6e3, weights=68e3),
        }
    ),
)
"""onnxruntime on x86-64 with VNNI, one thread.

The rates are non-negative least squares of relative errors over chains of 4 and of 12 equal
operators: the difference is what one costs with all that the runtime does around it, without
the clock and the call (medians of interleaved runs, CPU time, onnxruntime 1.32).
"""
