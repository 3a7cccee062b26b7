"""Checksums: whatever is written needs them, and often little else, so they go without numba."""

from __future__ import annotations

from ctypes import c_int64, c_uint64, c_void_p
from typing import Any

import numpy as np
import numpy.typing as npt

from paring.kernels.machine import Machine


def _checksum(words: Any, n: Any, first: Any) -> Any:
    total = np.uint64(0)
    factor = np.uint64(2) * first + np.uint64(1)
    for i in range(n):
        total += words[i] * (factor + np.uint64(2) * np.uint64(i))
    return total


_run = Machine(_checksum, "uint64(CPointer(uint64), int64, uint64)", c_uint64, c_void_p, c_int64, c_uint64)


def checksum(data: npt.NDArray[np.uint8], start: int = 0) -> int:
    head = -start % 8
    total = _part(data[:head], start) if head else 0
    rest = data[head:]
    whole = len(rest) // 8 * 8
    words = rest[:whole] if rest.ctypes.data % 8 == 0 else rest[:whole].copy()
    total += _run(words.ctypes.data, whole // 8, (start + head) // 8)
    return int(total + _part(rest[whole:], start + head + whole)) % 2**64


def _part(data: npt.NDArray[np.uint8], start: int) -> int:
    """What a few bytes of one word add."""
    return (int.from_bytes(data.tobytes(), "little") << 8 * (start % 8)) * (2 * (start // 8) + 1)
