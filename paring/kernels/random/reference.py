"""The specification of :mod:`paring.kernels.random` in plain numpy."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from paring.kernels.random import F32, Keys

_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)
_FACTORS = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_STEPS = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)

Words = npt.NDArray[np.uint64]


def philox(counter: Words, key: Words) -> Words:
    """Philox 4x32-10 of ``counter (4, ...)`` and ``key (2, ...)``, 32-bit words in uint64."""
    x0, x1, x2, x3 = counter
    k0, k1 = key
    for _ in range(10):
        a, b = x0 * _FACTORS[0], x2 * _FACTORS[1]
        x0, x1, x2, x3 = (b >> _HALF) ^ x1 ^ k0, b & _LOW, (a >> _HALF) ^ x3 ^ k1, a & _LOW
        k0, k1 = (k0 + _STEPS[0]) & _LOW, (k1 + _STEPS[1]) & _LOW
    return np.stack([x0, x1, x2, x3])


def uniform(keys: Keys, start: int, count: int) -> F32:
    first = start // 4
    blocks = np.arange(first, -(-(start + count) // 4), dtype=np.uint64)
    zeros = np.zeros_like(blocks)
    out = np.empty((len(keys), count), np.float32)
    for i, key in enumerate(keys):
        halves = np.array([key & _LOW, key >> _HALF])[:, None]
        words = philox(np.stack([blocks & _LOW, blocks >> _HALF, zeros, zeros]), halves)
        flat = words.T.reshape(-1)[start - 4 * first :][:count]
        out[i] = (flat >> np.uint64(8)).astype(np.float32) * np.float32(2**-24)
    return out
