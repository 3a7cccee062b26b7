"""numba: a radix select a row, and ranks within small groups."""

from __future__ import annotations

from typing import Any

import numpy as np

from paring.kernels.jit import jit
from paring.kernels.pruning import F32, Mask, Sums

_ZERO = np.float32(0)


@jit(inline="always")
def _key(bits: Any) -> Any:
    """Unsigned numbers that order as fp32 do."""
    flip = np.uint32(0xFFFFFFFF) if bits >> np.uint32(31) else np.uint32(0x80000000)
    return bits ^ flip


@jit()
def _nth(row: Any, n: Any, table: Any) -> Any:
    """The key of the n-th least (n >= 1), and how many of those equal to it are among the n least."""
    prefix, mask = np.uint32(0), np.uint32(0)
    for shift in (24, 16, 8, 0):
        table[:] = 0
        for i in range(len(row)):
            key = _key(row[i])
            if key & mask == prefix:
                table[(key >> np.uint32(shift)) & np.uint32(255)] += 1
        digit = 0
        while table[digit] < n:
            n -= table[digit]
            digit += 1
        prefix |= np.uint32(digit) << np.uint32(shift)
        mask |= np.uint32(255) << np.uint32(shift)
    return prefix, n


@jit()
def _best(bits: Any, keep: Any, out: Any) -> None:
    table = np.zeros(256, np.int64)
    for r in range(len(bits)):
        row, mask = bits[r], out[r]
        if keep == len(row):
            mask[:] = True
            continue
        least, ties = _nth(row, len(row) - keep, table)
        for i in range(len(row)):
            key = _key(row[i])
            tied = key == least
            mask[i] = (key > least) | (tied & (ties <= 0))
            ties -= tied


def _plain(scores: F32) -> Any:
    """The bits, with -0.0 as 0.0."""
    return (np.ascontiguousarray(scores, np.float32) + _ZERO).view(np.uint32)


def best(scores: F32, keep: int) -> Mask:
    out = np.empty(scores.shape, np.bool_)
    _best(_plain(scores), keep, out)
    return out


@jit()
def _grouped(bits: Any, keep: Any, of: Any, out: Any) -> None:
    for begin in range(0, len(bits), of):
        for i in range(begin, begin + of):
            above, own = 0, _key(bits[i])
            for j in range(begin, i):
                above += _key(bits[j]) > own
            for j in range(i + 1, begin + of):
                above += _key(bits[j]) >= own
            out[i] = above < keep


def grouped(scores: F32, keep: int, of: int) -> Mask:
    out = np.empty(scores.shape, np.bool_)
    _grouped(_plain(scores).reshape(-1), keep, of, out.reshape(-1))
    return out


@jit(fastmath={"reassoc", "contract"})
def _masked(bits: Any, values: Any, keep: Any, out: Any, found: Any) -> Any:
    kept = before = zeros = 0
    lost = total = 0.0
    nothing = bits[0] ^ bits[0]
    for i in range(len(bits)):
        out[i] = bits[i] if keep[i] else nothing
    for i in range(len(bits)):
        stays, zero = keep[i], values[i] == _ZERO
        square = np.float64(values[i]) * np.float64(values[i])
        total += square
        lost += np.float64(not stays) * square
        kept += stays
        before += zero
        zeros += zero | (not stays)
    found[0], found[1], found[2] = kept, before, zeros
    return lost, total


def masked(bits: Any, values: F32, keep: Mask, out: Any) -> Sums:
    plain = np.dtype(f"u{bits.dtype.itemsize}")
    found = np.zeros(3, np.int64)
    if not len(bits):
        return Sums()
    lost, total = _masked(np.ascontiguousarray(bits).view(plain), values, keep, out.view(plain), found)
    return Sums(int(found[0]), int(found[1]), int(found[2]), lost, total)
