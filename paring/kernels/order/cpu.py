"""numba: one pass over the bits, no temporary arrays."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from paring.kernels.jit import jit
from paring.kernels.order import F32, HIGH, LOW, Counts

_Bits = npt.NDArray[np.uint32]


@jit()
def _high(bits: _Bits, counts: Counts) -> None:
    for i in range(bits.size):
        counts[(bits[i] & np.uint32(0x7FFFFFFF)) >> np.uint32(15)] += 1


@jit()
def _low(bits: _Bits, bucket: np.uint32, counts: Counts) -> None:
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
