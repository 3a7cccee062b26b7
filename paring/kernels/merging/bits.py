"""Weighted sums from bf16 to bf16, in one pass over the bits: what the rules in most use come down to."""

from __future__ import annotations

from ctypes import c_float, c_int64, c_void_p
from typing import Any

import numpy as np

from paring.kernels.machine import Machine
from paring.kernels.merging import F64, U16

_BLOCK = 2048


def _mix(
    rows: Any, stride: Any, n: Any, k: Any, base: Any, weights: Any, scale: Any, scratch: Any, out: Any
) -> Any:
    # scratch is a block of the sum, then one of the base. numba widens whatever it can: all is cast back, or
    # vectors would hold half as much
    lost = np.int64(0)
    top = np.uint32(0)
    magnitude = np.uint32(0x7FFFFFFF)
    mask = np.uint32(0xFFFFFFFF * base)  # of no base there are zeros
    for begin in range(0, k, _BLOCK):
        m = min(_BLOCK, k - begin)
        for p in range(m):
            wide = np.uint32(np.uint32(np.uint32(rows[begin + p]) << np.uint32(16)) & mask)
            top = max(top, np.uint32(wide & magnitude))
            scratch[_BLOCK + p] = wide.view(np.float32)
            scratch[p] = np.float32(0)
        for i in range(base, n):
            at = i * stride + begin
            w = weights[i - base]
            for p in range(m):
                wide = np.uint32(np.uint32(rows[at + p]) << np.uint32(16))
                top = max(top, np.uint32(wide & magnitude))
                scratch[p] += w * (wide.view(np.float32) - scratch[_BLOCK + p])
        some = np.uint32(0)
        for p in range(m):
            merged = np.float32(scratch[p] * scale)
            x = np.float32(merged + scratch[_BLOCK + p]).view(np.uint32)
            odd = np.uint32(np.uint32(x >> np.uint32(16)) & np.uint32(1))
            x = np.uint32(np.uint32(x + np.uint32(0x7FFF)) + odd)
            top = max(top, np.uint32(x & magnitude))
            x = np.uint32(x >> np.uint32(16))
            same = np.uint32(np.uint32(rows[begin + p]) == x)
            some = np.uint32(some + np.uint32(np.uint32(merged != np.float32(0)) & same))
            out[begin + p] = np.uint16(x)
        lost += np.int64(some)
    return np.int64(-1) if top >= np.uint32(0x7F800000) else lost * base


_run = Machine(
    _mix,
    "int64(CPointer(uint16), int64, int64, int64, int64, CPointer(float32), float32, CPointer(float32),"
    " CPointer(uint16))",
    *(c_int64, c_void_p, c_int64, c_int64, c_int64, c_int64, c_void_p, c_float, c_void_p, c_void_p),
)


def mix(rows: U16, k: int, base: bool, weights: F64, scale: float, out: U16) -> int:
    scratch = np.empty(2 * _BLOCK, np.float32)
    short = weights.astype(np.float32)
    found: int = _run(
        rows.ctypes.data, rows.strides[0] // 2, len(rows), k, int(base), short.ctypes.data, scale,
        scratch.ctypes.data, out.ctypes.data,
    )  # fmt: skip
    return found
