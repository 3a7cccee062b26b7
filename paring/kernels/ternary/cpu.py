"""The ternary kernels as numba loops: what ``reference.py`` says, at the speed of memory.

The block coder's loops are in ``encoder.py`` and ``decoder.py``; :func:`encode_block` and
:func:`decode_block` show them one block.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from paring.dtypes import STORAGE, from_f32
from paring.errors import BadFileError
from paring.kernels.jit import jit
from paring.kernels.ternary import decoder, encoder, tables
from paring.kernels.ternary.counting import popcount
from paring.kernels.ternary.reference import BLOCK, Bytes


@jit()
def _threshold(x: Any, t: Any, mask: Any, sign: Any) -> None:
    whole = len(x) >> 3
    for i in range(whole):
        m = np.uint8(0)
        s = np.uint8(0)
        for j in range(8):
            v = x[8 * i + j]
            keep = abs(v) >= t
            m |= np.uint8(keep) << j
            s |= np.uint8(keep & (v < 0)) << j
        mask[i] = m
        sign[i] = s
    for i in range(8 * whole, len(x)):
        keep = abs(x[i]) >= t
        mask[whole] |= np.uint8(keep) << (i & 7)
        sign[whole] |= np.uint8(keep & (x[i] < 0)) << (i & 7)


def threshold(x: npt.NDArray[np.float32], t: float) -> tuple[Bytes, Bytes]:
    """Planes of ``x`` (n,), fp32: entries with ``|x| >= t`` (compared in fp32) are kept. NaN is not."""
    mask, sign = np.zeros((2, (len(x) + 7) // 8), np.uint8)
    _threshold(x, np.float32(t), mask, sign)
    return mask, sign


@jit()
def _pack(trits: Any, mask: Any, sign: Any) -> None:
    for i in range(len(trits)):
        mask[i >> 3] |= np.uint8(trits[i] != 0) << (i & 7)
        sign[i >> 3] |= np.uint8(trits[i] < 0) << (i & 7)


def pack(trits: npt.NDArray[np.int8]) -> tuple[Bytes, Bytes]:
    """Planes (ceil(n / 8),) of ``trits`` (n,), int8 in -1, 0, +1."""
    mask, sign = np.zeros((2, (len(trits) + 7) // 8), np.uint8)
    _pack(trits, mask, sign)
    return mask, sign


@jit()
def _spread(mask: Any, sign: Any, values: Any, out: Any) -> None:
    for i in range(len(out)):
        j = i & 7
        out[i] = values[(mask[i >> 3] >> j & 1) + (sign[i >> 3] >> j & 1)]


def unpack(mask: Bytes, sign: Bytes, n: int) -> npt.NDArray[np.int8]:
    """The first ``n`` trits (n,), int8, of two planes."""
    out = np.empty(n, np.int8)
    _spread(mask, sign, np.array([0, 1, -1], np.int8), out)
    return out


def dequantise(mask: Bytes, sign: Bytes, n: int, scale: float, dtype: str) -> npt.NDArray[Any]:
    """``scale * trit`` (n,) in the storage of ``dtype``, rounded once to nearest even; zeros are +0.

    Raises BadValueError where the fp32 ``scale`` overflows ``dtype``.
    """
    values = from_f32(np.array([0, scale, -scale], np.float32), dtype).data
    out = np.empty(n, STORAGE[dtype])
    bits = np.dtype(f"u{out.itemsize}")
    _spread(mask, sign, values.view(bits), out.view(bits))
    return out


@jit()
def _counts(mask_a: Any, sign_a: Any, mask_b: Any, sign_b: Any) -> Any:
    """Popcounts of: a, b, both, both with opposite signs."""
    a = b = both = opposite = np.uint64(0)
    for i in range(len(mask_a)):
        common = np.uint64(mask_a[i] & mask_b[i])
        a += popcount(np.uint64(mask_a[i]))
        b += popcount(np.uint64(mask_b[i]))
        both += popcount(common)
        opposite += popcount(common & np.uint64(sign_a[i] ^ sign_b[i]))
    return a, b, both, opposite


@jit()
def _dot(mask_a: Any, sign_a: Any, mask_b: Any, sign_b: Any) -> Any:
    both = opposite = np.uint64(0)
    for i in range(len(mask_a)):
        common = np.uint64(mask_a[i] & mask_b[i])
        both += popcount(common)
        opposite += popcount(common & np.uint64(sign_a[i] ^ sign_b[i]))
    return both, opposite


def _by_words(kernel: Any, planes: Sequence[Bytes]) -> list[int]:
    whole = len(planes[0]) // 8 * 8
    body = kernel(*(p[:whole].view(np.uint64) for p in planes))
    tail = kernel(*(p[whole:] for p in planes))
    return [int(x) + int(y) for x, y in zip(body, tail, strict=True)]


def dot(mask_a: Bytes, sign_a: Bytes, mask_b: Bytes, sign_b: Bytes) -> int:
    """Dot product of two ternary vectors of unit scale."""
    both, opposite = _by_words(_dot, (mask_a, sign_a, mask_b, sign_b))
    return both - 2 * opposite


def cosine(mask_a: Bytes, sign_a: Bytes, mask_b: Bytes, sign_b: Bytes) -> float:
    """Cosine of two ternary vectors; 0 where one of them is zero."""
    a, b, both, opposite = _by_words(_counts, (mask_a, sign_a, mask_b, sign_b))
    return (both - 2 * opposite) / math.sqrt(a * b) if a and b else 0.0


def hamming(mask_a: Bytes, sign_a: Bytes, mask_b: Bytes, sign_b: Bytes) -> int:
    """Number of entries in which two ternary vectors differ."""
    a, b, both, opposite = _by_words(_counts, (mask_a, sign_a, mask_b, sign_b))
    return a + b - 2 * both + opposite


def encode_block(mask: Bytes, sign: Bytes, ends: Sequence[int]) -> tuple[list[int], int, bytes]:
    """Code one block of planes (symbols,) whose pieces end at the symbols ``ends``.

    Returns the classes of the pieces, the mode and the bytes; a block of zeros is mode 0 and no bytes.
    """
    pieces, firsts = np.array([0, *ends]), np.array([0, len(ends)])
    classes, index = np.zeros(len(ends), np.uint8), np.zeros(1, np.uint16)
    out = np.empty(2 * len(mask) + 64, np.uint8)
    size = encoder.encode_blocks(mask, sign, pieces, firsts, *tables.encoding_tables(), classes, index, out)
    return classes.tolist(), int(index[0]) >> 14, out[:size].tobytes()


def decode_block(data: bytes, mode: int, ends: Sequence[int], classes: Sequence[int]) -> tuple[Bytes, Bytes]:
    """Planes of one block, the inverse of :func:`encode_block`. Raises BadFileError on damage."""
    mask, sign = np.zeros((2, ends[-1] if ends else 0), np.uint8)
    if len(mask) > BLOCK or len(data) > decoder.MOST:
        raise BadFileError("a block of ternary data is damaged")
    one = np.zeros(len(ends), np.int64)
    bad = decoder.decode_planes(
        np.frombuffer(data, np.uint8), np.array([0, len(data)]), np.array([mode << 14], np.uint16), one[:1],
        np.array([0, *ends]), np.array([0, len(ends)]), np.array(classes, np.uint8),
        *tables.decoding_tables(classes),
        one, one, one, mask, sign,
    )  # fmt: skip
    if bad >= 0:
        raise BadFileError("a block of ternary data is damaged")
    return mask, sign
