"""numba: half a nanosecond an entry, in loops that compilers make vectors of."""

from __future__ import annotations

from typing import Any

import numpy as np

from paring.kernels.jit import jit
from paring.kernels.random import F32, Keys

_HALF, _EIGHT = np.uint64(32), np.uint32(8)
_M0, _M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_W0, _W1 = np.uint32(0x9E3779B9), np.uint32(0xBB67AE85)
_UNIT = np.float32(2**-24)


@jit()
def _fill(key: Any, first: Any, a: Any, b: Any, c: Any, d: Any) -> None:
    """The four words of blocks ``first, first + 1, ...``, made uniform. numba widens sums: cast them back."""
    for p in range(len(a)):
        block = first + np.uint64(p)
        x0, x1, x2, x3 = np.uint32(block), np.uint32(block >> _HALF), np.uint32(0), np.uint32(0)
        k0, k1 = np.uint32(key), np.uint32(key >> _HALF)
        for _ in range(10):
            left, right = _M0 * np.uint64(x0), _M1 * np.uint64(x2)
            x0 = np.uint32(np.uint32(right >> _HALF) ^ x1 ^ k0)
            x2 = np.uint32(np.uint32(left >> _HALF) ^ x3 ^ k1)
            x1, x3 = np.uint32(right), np.uint32(left)
            k0, k1 = np.uint32(k0 + _W0), np.uint32(k1 + _W1)
        a[p] = np.float32(x0 >> _EIGHT) * _UNIT
        b[p] = np.float32(x1 >> _EIGHT) * _UNIT
        c[p] = np.float32(x2 >> _EIGHT) * _UNIT
        d[p] = np.float32(x3 >> _EIGHT) * _UNIT


@jit()
def _uniform(keys: Any, first: Any, blocks: Any, out: Any) -> None:
    size = 1024
    words = np.empty((4, size), np.float32)
    for i in range(len(keys)):
        for begin in range(0, blocks, size):
            row = out[i, 4 * begin : 4 * min(blocks, begin + size)]
            n = len(row) // 4
            _fill(keys[i], first + np.uint64(begin), words[0, :n], words[1, :n], words[2, :n], words[3, :n])
            for w in range(4):
                for p in range(n):
                    row[4 * p + w] = words[w, p]


def uniform(keys: Keys, start: int, count: int) -> F32:
    first = start // 4
    blocks = -(-(start + count) // 4) - first
    out = np.empty((len(keys), 4 * blocks), np.float32)
    _uniform(keys, np.uint64(first), blocks, out)
    return out[:, start - 4 * first :][:, :count]
