"""numba: one pass over the bits, no temporary arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from paring.kernels.jit import jit
from paring.kernels.order import F32, HIGH, LOW, Counts, Keys

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


@jit(inline="always")
def _key(bits: Any, signed: Any) -> Any:
    if signed:
        flip = np.uint32(0xFFFFFFFF) if bits >> np.uint32(31) else np.uint32(0x80000000)
        return bits ^ flip
    return bits & np.uint32(0x7FFFFFFF)


@jit()
def _between(bits: Any, signed: Any, low: Any, width: Any, out: Any) -> Any:
    below = filled = 0
    for i in range(bits.size):
        key = _key(bits[i], signed)
        below += key < low
        out[filled] = key
        filled += key - low <= width  # without a branch; what is below wraps around
    return below, filled


def between(values: F32, signed: bool, low: int, high: int) -> tuple[int, Keys]:
    bits = np.ascontiguousarray(values).view(np.uint32)
    out = np.empty(len(bits) + 1, np.uint32)
    below, filled = _between(bits, signed, np.uint32(low), np.uint32(high - low), out)
    return int(below), out[:filled].copy()


@jit()
def _count(bits: Any, signed: Any, low: Any, shift: Any, counts: Any) -> Any:
    below = 0
    for i in range(bits.size):
        key = _key(bits[i], signed)
        below += key < low
        place = (key - low) >> shift
        if key >= low and place < counts.size:
            counts[place] += 1
    return below


def count(values: F32, signed: bool, low: int, shift: int) -> tuple[int, Counts]:
    bits, counts = np.ascontiguousarray(values).view(np.uint32), np.zeros(HIGH, np.int64)
    return int(_count(bits, signed, np.uint32(low), np.uint32(shift), counts)), counts
