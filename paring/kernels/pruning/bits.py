"""16-bit floats as bare machine code: what magnitude pruning of most checkpoints comes down to."""

from __future__ import annotations

from ctypes import c_float, c_int64, c_uint32, c_void_p
from typing import Any

import numpy as np

from paring.kernels.machine import Machine
from paring.kernels.pruning import BINS, U16, Counts, Sums

_TABLES = 4
_LANES = 512  # squares are added up side by side: only then loops become vectors


def _count(bits: Any, n: Any, tables: Any) -> None:
    # neighbours that are equal would wait for each other in one table
    whole = n - n % 4
    for i in range(0, whole, 4):
        for j in range(4):
            tables[j * 32768 + np.int64(bits[i + j] & np.uint16(0x7FFF))] += np.uint32(1)
    for i in range(whole, n):
        tables[np.int64(bits[i] & np.uint16(0x7FFF))] += np.uint32(1)


_run_count = Machine(
    _count, "void(CPointer(uint16), int64, CPointer(uint32))", None, c_void_p, c_int64, c_void_p
)


def counts(bits: U16) -> Counts:
    plain = np.ascontiguousarray(bits).view(np.uint16)
    tables = np.zeros((_TABLES, BINS), np.uint32)
    _run_count(plain.ctypes.data, len(plain), tables.ctypes.data)
    found: Counts = tables.sum(axis=0, dtype=np.int64)
    return found


def _cut(bits: Any, n: Any, first: Any, shift: Any, gain: Any, sums: Any, found: Any, out: Any) -> None:
    # sums: of every place in a block what is dropped, then all. numba widens whatever it can: all is cast
    # back, or vectors would hold half as much
    for begin in range(0, n, 512):
        m = min(512, n - begin)
        kept = np.uint32(0)
        zeros = np.uint32(0)
        for p in range(m):
            size = np.uint32(np.uint32(bits[begin + p]) & np.uint32(0x7FFF))
            stays = np.uint32(size >= first)
            kept = np.uint32(kept + stays)
            zeros = np.uint32(zeros + np.uint32(size == np.uint32(0)))
            out[begin + p] = np.uint16(np.uint32(bits[begin + p]) * stays)
        found[0] += np.int64(kept)
        found[1] += np.int64(zeros)
        for p in range(m):
            size = np.uint32(np.uint32(bits[begin + p]) & np.uint32(0x7FFF))
            x = np.float32(np.uint32(size << shift).view(np.float32) * gain)
            square = np.float64(x) * np.float64(x)
            sums[512 + p] += square
            sums[p] += square if size < first else 0.0


_run_cut = Machine(
    _cut,
    "void(CPointer(uint16), int64, uint32, uint32, float32, CPointer(float64), CPointer(int64),"
    " CPointer(uint16))",
    *(None, c_void_p, c_int64, c_uint32, c_uint32, c_float, c_void_p, c_void_p, c_void_p),
)


def cut(bits: U16, dtype: str, first: int, out: U16) -> Sums:
    plain = np.ascontiguousarray(bits).view(np.uint16)
    sums, found = np.zeros((2, _LANES)), np.zeros(2, np.int64)
    # an fp16's exponent and mantissa moved into place are 2^-112 of its value, subnormals too
    shift, gain = (16, 1.0) if dtype == "BF16" else (13, 2.0**112)
    _run_cut(
        plain.ctypes.data, len(plain), first, shift, gain, sums.ctypes.data, found.ctypes.data,
        out.ctypes.data,
    )  # fmt: skip
    kept, before = (int(x) for x in found)
    lost, total = (float(x) for x in sums.sum(axis=1))
    return Sums(kept, before, len(plain) - kept if first else before, lost, total)
