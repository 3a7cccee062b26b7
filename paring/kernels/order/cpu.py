"""numba: one pass over the bits, no temporary arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from paring.kernels.jit import jit
from paring.kernels.order import F32, HIGH, LOW, Bracket, Counts, Keys

_Bits = npt.NDArray[np.uint32]
_BLOCK = 64  # entries that are compared at once


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
        negative = np.int32(bits) >> np.int32(31)  # all ones: no branch
        return bits ^ (np.uint32(negative) | np.uint32(0x80000000))
    return bits & np.uint32(0x7FFFFFFF)


@jit()
def _compared(bits: Any, signed: Any, low: Any, width: Any) -> Any:
    below = within = np.uint32(0)
    for i in range(bits.size):
        key = _key(bits[i], signed)
        below += np.uint32(key < low)
        within += np.uint32(np.uint32(key - low) <= width)  # what is below wraps around
    return below, within


@jit()
def _between(bits: Any, signed: Any, low: Any, width: Any, out: Any) -> Any:
    # brackets are narrow: most blocks have no key within, and counting is made of vectors
    below = filled = 0
    for begin in range(0, bits.size, _BLOCK):
        block = bits[begin : begin + _BLOCK]
        some, within = _compared(block, signed, low, width)
        below += some
        if within:
            for i in range(block.size):
                key = _key(block[i], signed)
                if np.uint32(key - low) <= width:
                    out[filled] = key
                    filled += 1
    return below, filled


@jit()
def _brackets(
    bits: Any, signed: Any, rows: Any, lows: Any, widths: Any, below: Any, ends: Any, out: Any
) -> None:
    ends[0] = 0
    for m in range(len(rows)):
        begin = ends[m]
        below[m], found = _between(bits[rows[m]], signed, lows[m], widths[m], out[begin:])
        ends[m + 1] = begin + found


def brackets(values: F32, signed: bool, wanted: Sequence[Bracket]) -> list[tuple[int, Keys]]:
    bits = np.ascontiguousarray(values).view(np.uint32)
    rows, lows, highs = np.array(wanted, np.int64).reshape(-1, 3).T
    m = len(rows)
    below, ends, out = (
        np.empty(m, np.int64),
        np.empty(m + 1, np.int64),
        np.empty(m * bits.shape[1], np.uint32),
    )
    _brackets(bits, signed, rows, lows.astype(np.uint32), (highs - lows).astype(np.uint32), below, ends, out)
    keys, places = out[: ends[-1]].copy(), ends.tolist()
    return [(some, keys[a:b]) for some, a, b in zip(below.tolist(), places, places[1:], strict=False)]


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
