"""How many ones there are in words and in planes, as numba functions.

numba keeps what it compiled of ``cpu.py`` and ``decoder.py`` until those files change, not this one: touch
them when working here.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from paring.kernels.jit import jit
from paring.kernels.ternary.tables import COUNT


@jit()
def popcount(x: Any) -> Any:
    """Ones of a uint64. LLVM knows this for a popcount, and makes vectors of it."""
    x = x - (x >> np.uint64(1) & np.uint64(0x5555555555555555))
    x = (x & np.uint64(0x3333333333333333)) + (x >> np.uint64(2) & np.uint64(0x3333333333333333))
    x = (x + (x >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return x * np.uint64(0x0101010101010101) >> np.uint64(56)


@jit()
def ones(masks: Any, a: int, b: int) -> Any:
    """Ones of masks[a:b]."""
    first = min(a + 7 >> 3 << 3, b)
    last = max(b >> 3 << 3, first)
    words = np.uint64(0)
    for word in masks[first:last].view(np.uint64):
        words += popcount(word)
    count = np.int64(words)
    for i in range(a, first):
        count += COUNT[masks[i]]
    for i in range(last, b):
        count += COUNT[masks[i]]
    return count
