"""The tables that decode chains share, stored once for a whole model.

Keys and int32 shapes: ``digits B`` (256, n) holds the n digits of base B in every byte value, and
``digits B * S`` the same times S; ``joint B C G`` (rows, G) holds the G codes that G digits of base
B and as many of base C make together, digits of B being the lower ones and in the lower part of a
row's number; ``ranks`` (256, 8) holds at a set bit how many are set up to it,
and a very negative number at others; ``counts`` (256, 1) how many are set.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import onnx

from onnxslim_tk.kernels.digits import digit_table, digits_in_byte
from onnxslim_tk.packing.chain import Chain
from onnxslim_tk.packing.scopes import Names

RANKS = "ranks"
COUNTS = "counts"

_BYTES = "bytes"
_SUMS = "sums"


def digits_key(base: int, stride: int = 1) -> str:
    """The key of the table of a byte's digits, each times ``stride``."""
    return f"digits {base}" + (f" * {stride}" if stride > 1 else "")


def joint_key(bases: tuple[int, ...], group: int) -> str:
    """The key of the table of ``group`` codes of several bases each."""
    return " ".join(("joint", *map(str, bases), str(group)))


def rows_of(base: int, group: int) -> int:
    """How many values the part of a joint table's row number has that stands for one base."""
    return 256 if digits_in_byte(base) == group else base**group


class Tables:
    """Tables made at their first use."""

    def __init__(self, names: Names, opset: int) -> None:
        self.chain = Chain(names, {}, self, opset)
        self._made: dict[str, str] = {}

    def __call__(self, key: str) -> str:
        """Return the name of a table."""
        if key not in self._made:
            kind, *rest = key.replace("*", "").split()
            build = _BUILDERS[kind]
            self._made[key] = build(self.chain, *map(int, rest))
        return self._made[key]

    def drop_unread(self, readers: Iterable[Chain]) -> None:
        """Take away what no chain reads in the end."""
        read = {name for chain in readers for node in chain.nodes for name in node.input}
        kept: list[onnx.NodeProto] = []
        for node in reversed(self.chain.nodes):
            if node.output[0] in read:
                kept.insert(0, node)
                read.update(node.input)
        self.chain.nodes = kept
        self.chain.initializers = [t for t in self.chain.initializers if t.name in read]


def _digits(chain: Chain, base: int, stride: int = 1) -> str:
    if stride > 1:
        factor = chain.constant(np.array(stride, np.int32))
        return chain.node("Mul", chain.table(digits_key(base)), factor)
    # CumSum, which counts from 0 to 255 in fewer bytes than the numbers take, needs opset 11.
    if chain.opset < 11:
        return chain.as_integers(chain.constant(digit_table(base)))
    weights = base ** np.arange(digits_in_byte(base) + 1)
    low, high = (chain.constant(w.astype(np.int32)) for w in (weights[:-1], weights[1:]))
    # No Mod: not every runtime computes it as it should.
    ones = chain.node("Div", chain.table(_BYTES), low)
    tens = chain.node("Div", chain.table(_BYTES), high)
    above = chain.node("Mul", tens, chain.constant(np.array(base, np.int32)))
    return chain.node("Sub", ones, above)


def _joint(chain: Chain, *bases_and_group: int) -> str:
    *bases, group = bases_and_group
    total, rows, stride = "", 1, 1
    for base in bases:
        part, own = chain.table(digits_key(base, stride)), rows_of(base, group)
        if own < 256:
            part = chain.cut(part, (0, 0), (own, group))
        # Bases that come later change more slowly.
        part = chain.shaped(part, own * group, (own, 1, group))
        total = chain.node("Add", total, part) if total else part
        rows, stride = rows * own, stride * base
        total = chain.shaped(total, rows * group, (1, rows, group))
    return chain.shaped(total, rows * group, (rows, group))


def _bytes(chain: Chain) -> str:
    ones = chain.filled((256, 1), np.ones(1, np.int32))
    return chain.node("CumSum", ones, chain.constant(np.array(0, np.int64)), exclusive=1)


def _sums(chain: Chain) -> str:
    return chain.node("CumSum", chain.table(digits_key(2)), chain.constant(np.array(1, np.int64)))


def _ranks(chain: Chain) -> str:
    bits = chain.table(digits_key(2))
    below = chain.node("Sub", bits, chain.constant(np.array(1, np.int32)))
    far = chain.node("Mul", below, chain.constant(np.array(1 << 30, np.int32)))
    return chain.node("Add", far, chain.table(_SUMS))


def _counts(chain: Chain) -> str:
    return chain.node("Gather", chain.table(_SUMS), chain.constant(np.array([7])), axis=1)


_BUILDERS: dict[str, Callable[..., str]] = {
    "digits": _digits,
    "joint": _joint,
    _BYTES: _bytes,
    _SUMS: _sums,
    RANKS: _ranks,
    COUNTS: _counts,
}
