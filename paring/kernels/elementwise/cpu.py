"""numba: one pass over the bits, in forms that compilers make vectors of."""

from __future__ import annotations

from typing import Any

import numpy as np

from paring.dtypes import STORAGE
from paring.errors import UnsupportedError
from paring.kernels.elementwise import F32, Bits
from paring.kernels.elementwise.sums import checksum
from paring.kernels.jit import jit

__all__ = ["checksum", "narrow", "unmoved", "widen"]

_2_112 = np.float32(2.0**112)


@jit()
def _from_bf16(bits: Any, out: Any) -> Any:
    bad = np.uint32(0)
    for i in range(bits.size):
        wide = np.uint32(bits[i]) << np.uint32(16)
        bad |= np.uint32((wide & np.uint32(0x7F800000)) == np.uint32(0x7F800000))
        out[i] = wide
    return bad


@jit()
def _from_bf16_less(bits: Any, less: Any, out: Any) -> Any:
    bad = np.uint32(0)
    for i in range(bits.size):
        wide = np.uint32(np.uint32(bits[i]) << np.uint32(16))
        bad |= np.uint32((wide & np.uint32(0x7F800000)) == np.uint32(0x7F800000))
        out[i] = wide.view(np.float32) - less[i]
    return bad


@jit()
def _from_f16(bits: Any, out: Any, values: Any) -> Any:
    # exponent and mantissa moved into place are 2^-112 of the value, subnormals too
    bad = np.uint32(0)
    for i in range(bits.size):
        half = np.uint32(bits[i])
        bad |= np.uint32((half & np.uint32(0x7C00)) == np.uint32(0x7C00))
        out[i] = (half & np.uint32(0x8000)) << np.uint32(16) | (half & np.uint32(0x7FFF)) << np.uint32(13)
    for i in range(bits.size):
        values[i] *= _2_112
    return bad


@jit()
def _finite(bits: Any) -> Any:
    bad = np.uint32(0)
    for i in range(bits.size):
        bad |= np.uint32((bits[i] & np.uint32(0x7F800000)) == np.uint32(0x7F800000))
    return bad


def widen(bits: Bits, dtype: str, out: F32, less: F32 | None = None) -> bool:
    if less is None:
        return _widen(bits, dtype, out)
    if dtype == "BF16":
        return not _from_bf16_less(bits, less, out)
    finite = _widen(bits, dtype, out)
    with np.errstate(invalid="ignore"):
        np.subtract(out, less, out=out)
    return finite


def _widen(bits: Bits, dtype: str, out: F32) -> bool:
    target = out.view(np.uint32)
    if dtype == "BF16":
        return not _from_bf16(bits, target)
    if dtype == "F16":
        return not _from_f16(bits.view(np.uint16), target, out)
    if dtype not in ("F32", "F64"):
        raise UnsupportedError(f"tensors of dtype {dtype} hold no floating-point values to work on")
    with np.errstate(over="ignore", invalid="ignore"):
        np.copyto(out, bits, casting="same_kind")
    return not _finite(target)


@jit()
def _to_bf16(bits: Any, out: Any) -> Any:
    bad = np.uint16(0)
    for i in range(bits.size):
        x = bits[i]
        short = np.uint16((x + np.uint32(0x7FFF) + (x >> np.uint32(16) & np.uint32(1))) >> np.uint32(16))
        bad |= np.uint16((short & np.uint16(0x7F80)) == np.uint16(0x7F80))
        out[i] = short
    return bad


@jit()
def _finite_16(bits: Any) -> Any:
    bad = np.uint16(0)
    for i in range(bits.size):
        bad |= np.uint16((bits[i] & np.uint16(0x7C00)) == np.uint16(0x7C00))
    return bad


def narrow(values: F32, dtype: str, out: Bits) -> bool:
    if dtype == "BF16":
        return not _to_bf16(values.view(np.uint32), out)
    if dtype not in ("F64", "F32", "F16"):
        raise UnsupportedError(f"cannot write floating-point values as {dtype}")
    with np.errstate(over="ignore", invalid="ignore"):
        np.copyto(out.view(STORAGE[dtype]), values, casting="same_kind")
    if dtype == "F16":
        return not _finite_16(out.view(np.uint16))
    return not _finite(values.view(np.uint32))


@jit()
def _unmoved(update: Any, before: Any, after: Any) -> Any:
    count = 0
    for i in range(update.size):
        count += (update[i] != 0) & (before[i] == after[i])
    return count


def unmoved(update: F32, before: Bits, after: Bits) -> int:
    bits = np.dtype(f"u{before.dtype.itemsize}")
    return int(_unmoved(update, before.view(bits), after.view(bits)))
