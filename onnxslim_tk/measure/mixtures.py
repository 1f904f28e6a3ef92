"""Mixtures of samples: inputs between those that are there, for fits that few samples mislead."""

from collections.abc import Sequence
from typing import Final

import numpy as np

from onnxslim_tk.measure.runtime import Feed

_LEAST_SHARE: Final = 0.2


def mixtures(feeds: Sequence[Feed], count: int, seed: int) -> list[Feed]:
    """``count`` weighted means of two of ``feeds`` each (mixup, Zhang et al., 2018).

    The weights are between 0.2 and 0.8. None where there are fewer than two feeds, where inputs are
    not floats (a mean of two words is none), or where their shapes differ.
    """
    kinds = {
        tuple((name, np.asarray(v).dtype, np.asarray(v).shape) for name, v in sorted(feed.items()))
        for feed in feeds
    }
    if len(feeds) < 2 or len(kinds) != 1 or any(k.kind != "f" for _, k, _ in next(iter(kinds))):
        return []
    rng = np.random.default_rng(seed)
    found: list[Feed] = []
    for _ in range(count):
        first, second = (feeds[k] for k in rng.choice(len(feeds), 2, replace=False))
        share = rng.uniform(_LEAST_SHARE, 1 - _LEAST_SHARE)
        found.append(
            {
                name: (share * value + (1 - share) * second[name]).astype(value.dtype)
                for name, value in first.items()
            }
        )
    return found
