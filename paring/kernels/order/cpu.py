"""numba: one pass over the bits, no temporary arrays."""

from __future__ import annotations

import numba as nb
import numpy as np

from paring.kernels.order import F32, HIGH, LOW, Counts


@nb.njit(cache=True, nogil=True)
def _high(bits: np.ndarray, counts: np.ndarray) -> None:  # type: ignore[type-arg]
    for i in range(bits.size):
        counts[(bits[i] & np.uint32(0x7FFFFFFF)) >> np.uint32(15)] += 1


@nb.njit(cache=True, nogil=True)
def _low(bits: np.ndarray, bucket: np.uint32, counts: np.ndarray) -> None:  # type: ignore[type-arg]
    for i in range(bits.size):
        key = bits[i] & np.uint32(0x7FFFFFFF)
        if key >> np.uint32(15) == bucket:
            counts[key & np.uint32(0x7FFF)] += 1


def high(values: F32) -> Counts:
    counts = np.zeros(HIGH, np.int64)
    _high(np.ascontiguousarray(values).view(np.uint32), counts)
    return counts


def low(values: F32, bucket: int) -> Counts:
    counts = np.zeros(LOW, np.int64)
    _low(np.ascontiguousarray(values).view(np.uint32), np.uint32(bucket), counts)
    return counts
