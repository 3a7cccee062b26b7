"""What the ternary kernels mean, in plain numpy and Python: slow, short, and the specification of the format.

**Planes.** Trits (-1, 0, +1) live in two bit planes, ``uint8``, little bit order: bit i of ``mask`` says that
entry i is not zero, bit i of ``sign`` that it is negative; ``sign`` is a subset of ``mask`` and padding bits
are zero. One byte of planes, eight entries, is a *symbol*.

**Blocks.** At most ``BLOCK`` symbols are coded together, as *pieces* that each have a density *class*. Class
0 is all zeros and takes no bytes. In class j an entry is non-zero with probability ``DENSITIES[j] / 65536``,
independently, so the probability of a mask byte depends on its popcount alone; :func:`frequencies` rounds
those to 4096ths with integers only. Masks too rare for that share an *escape*.

A coded block is: the final states of ``LANES[mode]`` interleaved rANS coders (uint32 each; symbol i of the
block belongs to lane ``i % lanes``; states live in [2^16, 2^32), 12-bit frequencies, renormalisation by 16
bits), the uint16 words in the order in which a decoder wants them, the sign bits of the non-zero entries in
order, and the escaped masks, last one first. All is little endian. The first 16 sign bits a lane ride in the
state that the encoder of that lane starts from, 2^16 + bits, where a decoder finds them at its end, so that a
state costs half its size. A block of mode 0 is its mask bytes and its sign bits.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from paring.dtypes import from_f32
from paring.errors import BadFileError

Bytes = npt.NDArray[np.uint8]

#: symbols in a full block: 64 Ki parameters
BLOCK = 8192
#: coders interleaved in a block, by its mode; 0: the block is stored as it is. A lane costs a byte on
#: average, so an encoder takes 8 from 1024 non-zeros on (which decodes fastest), 4 from 64 on, else 1
LANES = (0, 1, 4, 8)
#: round(65536 / (1 + exp(-(j - 32) / 4))): the probability of a non-zero in class j, in 65536ths (class 0:
#: none)
DENSITIES = (
    0, 28, 36, 47, 60, 77, 98, 126, 162, 208, 267, 342, 439, 562, 720, 922, 1179, 1506, 1921, 2446,
    3108, 3938, 4971, 6249, 7812, 9702, 11955, 14595, 17625, 21025, 24743, 28693, 32768, 36843, 40793,
    44511, 47911, 50941, 53581, 55834, 57724, 59287, 60565, 61598, 62428, 63090, 63615, 64030, 64357,
    64614, 64816, 64974, 65097, 65194, 65269, 65328, 65374, 65410, 65438, 65459, 65476, 65489, 65500,
    65508,
)  # fmt: skip
CLASSES = len(DENSITIES)
ESCAPE = 256

_TOTAL = 4096
_CHOOSE = tuple(math.comb(8, p) for p in range(9))


def threshold(x: npt.NDArray[np.float32], t: float) -> tuple[Bytes, Bytes]:
    """Planes of ``x`` (n,), fp32: entries with ``|x| >= t`` (compared in fp32) are kept. NaN is not."""
    keep = np.abs(x) >= np.float32(t)
    return np.packbits(keep, bitorder="little"), np.packbits(keep & (x < 0), bitorder="little")


def pack(trits: npt.NDArray[np.int8]) -> tuple[Bytes, Bytes]:
    """Planes (ceil(n / 8),) of ``trits`` (n,), int8 in -1, 0, +1."""
    return np.packbits(trits != 0, bitorder="little"), np.packbits(trits < 0, bitorder="little")


def unpack(mask: Bytes, sign: Bytes, n: int) -> npt.NDArray[np.int8]:
    """The first ``n`` trits (n,), int8, of two planes."""
    bits = np.unpackbits(mask, count=n, bitorder="little").astype(np.int8)
    return bits - 2 * np.unpackbits(sign, count=n, bitorder="little").astype(np.int8)


def dequantise(mask: Bytes, sign: Bytes, n: int, scale: float, dtype: str) -> npt.NDArray[Any]:
    """``scale * trit`` (n,) in the storage of ``dtype``, rounded once to nearest even; zeros are +0.

    Raises BadValueError where the fp32 ``scale`` overflows ``dtype``.
    """
    values = from_f32(np.array([0, scale, -scale], np.float32), dtype).data
    return values[unpack(mask, sign, n)]  # -1 picks the last


def dot(mask_a: Bytes, sign_a: Bytes, mask_b: Bytes, sign_b: Bytes) -> int:
    """Dot product of two ternary vectors of unit scale."""
    both = mask_a & mask_b
    return _popcount(both) - 2 * _popcount(both & (sign_a ^ sign_b))


def cosine(mask_a: Bytes, sign_a: Bytes, mask_b: Bytes, sign_b: Bytes) -> float:
    """Cosine of two ternary vectors; 0 where one of them is zero."""
    norms = _popcount(mask_a) * _popcount(mask_b)
    return dot(mask_a, sign_a, mask_b, sign_b) / math.sqrt(norms) if norms else 0.0


def hamming(mask_a: Bytes, sign_a: Bytes, mask_b: Bytes, sign_b: Bytes) -> int:
    """Number of entries in which two ternary vectors differ."""
    return _popcount((mask_a ^ mask_b) | (sign_a ^ sign_b))


def _popcount(plane: Bytes) -> int:
    return int(np.bitwise_count(plane).sum(dtype=np.int64))


@functools.cache
def frequencies(density: int) -> tuple[int, ...]:
    """Frequencies of the 256 masks and of the escape (257,), sum 4096, for a class of ``density`` / 65536.

    Masks less probable than 1/16384 are escaped (frequency 0). The others start from the whole part of their
    due, at least 1; what is left over or overdrawn goes one by one to, or comes from, the popcount whose due
    stands out most from its frequency (Sainte-Laguë: due / (2 f + 1)), lower popcounts first, lower masks
    first.
    """
    due = [density**p * (65536 - density) ** (8 - p) * _TOTAL for p in range(9)]
    unit = 65536**8
    rare = [p for p in range(9) if 4 * due[p] < unit]
    groups = [[m for m in range(256) if m.bit_count() == p] for p in range(9) if p not in rare]
    dues = [due[p] for p in range(9) if p not in rare]
    if rare:
        groups.append([ESCAPE])
        dues.append(sum(due[p] * _CHOOSE[p] for p in rare))
    low = [max(1, d // unit) for d in dues]  # each member has this or, the first `more`, one above
    more = [0] * len(dues)
    left = _TOTAL - sum(f * len(g) for f, g in zip(low, groups, strict=True))
    while left > 0:
        best = 0
        for i in range(1, len(dues)):
            if dues[i] * (2 * low[best] + 1) > dues[best] * (2 * low[i] + 1):
                best = i
        more[best] += 1
        if more[best] == len(groups[best]):
            low[best], more[best] = low[best] + 1, 0
        left -= 1
    while left < 0:
        top = [f + (n > 0) for f, n in zip(low, more, strict=True)]
        best = top.index(max(top))
        for i in range(len(dues)):
            if top[i] > 1 and dues[i] * (2 * top[best] - 1) < dues[best] * (2 * top[i] - 1):
                best = i
        if more[best] == 0:
            low[best], more[best] = low[best] - 1, len(groups[best])
        more[best] -= 1
        left += 1
    out = [0] * 257
    for f, n, group in zip(low, more, groups, strict=True):
        for rank, member in enumerate(group):
            out[member] = f + (rank < n)
    return tuple(out)


def marker(density: int) -> int:
    """The mask that stands for the escape in a table of slots, the rarest; -1 without escapes."""
    rarest = 255 if density <= 32768 else 0
    return rarest if frequencies(density)[rarest] == 0 else -1


@functools.cache
def costs() -> npt.NDArray[np.int64]:
    """Mean bits, times 65536, that a mask of popcount p takes in class j: (CLASSES, 9). Row 0 is not used."""
    table = np.zeros((CLASSES, 9), np.int64)
    for j in range(1, CLASSES):
        f = frequencies(DENSITIES[j])
        bits = [math.log2(_TOTAL / f[m]) if f[m] else math.log2(_TOTAL / f[ESCAPE]) + 8 for m in range(256)]
        for p in range(9):
            of_p = [bits[m] for m in range(256) if m.bit_count() == p]
            table[j, p] = round(65536 * math.fsum(of_p) / len(of_p))
    return table


def choose_class(mask: Bytes, before: int) -> int:
    """The class that takes the fewest bits; ``before``, the previous piece's, unless that saves 2."""
    if not mask.any():
        return 0
    bits = costs()[1:] @ np.bincount(np.bitwise_count(mask), minlength=9)
    best = int(bits.argmin()) + 1
    return before if before and bits[before - 1] <= bits[best - 1] + 2 * 65536 else best


def encode_block(mask: Bytes, sign: Bytes, ends: Sequence[int]) -> tuple[list[int], int, bytes]:
    """Code one block of planes (symbols,) whose pieces end at the symbols ``ends``.

    Returns the classes of the pieces, the mode and the bytes; a block of zeros is mode 0 and no bytes.
    """
    starts = [0, *ends[:-1]]
    classes: list[int] = []
    for a, b in zip(starts, ends, strict=True):
        classes.append(choose_class(mask[a:b], classes[-1] if classes else 0))
    if not any(classes):
        return classes, 0, b""
    negative = unpack(mask, sign, 8 * len(mask))
    negative = negative[negative != 0] < 0
    mode = 3 if len(negative) >= 1024 else 2 if len(negative) >= 64 else 1
    lanes = LANES[mode]
    riding = np.packbits(np.append(negative, [False] * 128)[: 16 * lanes], bitorder="little").view("<u2")
    states = [65536 + int(bits) for bits in riding]
    words: list[int] = []
    escaped: list[int] = []
    for a, b, j in reversed(list(zip(starts, ends, classes, strict=True))):
        if j == 0:
            continue
        f = frequencies(DENSITIES[j])
        for i in reversed(range(a, b)):
            symbol = int(mask[i])
            if f[symbol] == 0:
                escaped.append(symbol)
                symbol = ESCAPE
            x = states[i % lanes]
            if x >= f[symbol] << 20:
                words.append(x & 0xFFFF)
                x >>= 16
            states[i % lanes] = (x // f[symbol] << 12) + x % f[symbol] + sum(f[:symbol])
    coded = np.array(states, "<u4").tobytes() + np.array(words[::-1], "<u2").tobytes()
    coded += np.packbits(negative[16 * lanes :], bitorder="little").tobytes() + bytes(escaped)
    plain = mask.tobytes() + np.packbits(negative, bitorder="little").tobytes()
    return (classes, mode, coded) if len(coded) < len(plain) else (classes, 0, plain)


def decode_block(data: bytes, mode: int, ends: Sequence[int], classes: Sequence[int]) -> tuple[Bytes, Bytes]:
    """Planes of one block, the inverse of :func:`encode_block`. Raises BadFileError on damage."""
    mask = np.zeros(ends[-1] if ends else 0, np.uint8)
    if not any(classes):
        if data:
            raise BadFileError("a block of ternary data is damaged")
        return mask, mask.copy()
    lanes = LANES[mode]
    riding = b""
    at = 4 * lanes
    last = len(data)
    padded = bytes(data) + bytes(at + 2 * BLOCK)
    if lanes == 0:
        at = len(mask)
        mask[:] = np.frombuffer(padded, np.uint8, at)
    else:
        states = [int(x) for x in np.frombuffer(padded, "<u4", lanes)]
        for a, b, j in zip([0, *ends[:-1]], ends, classes, strict=True):
            for i in range(a, b) if j else ():
                f = frequencies(DENSITIES[j])
                slot, symbol, start = states[i % lanes] & 4095, 0, 0
                while start + f[symbol] <= slot:
                    start += f[symbol]
                    symbol += 1
                x = f[symbol] * (states[i % lanes] >> 12) + slot - start
                if x < 65536:
                    x = x << 16 | int.from_bytes(padded[at : at + 2], "little")
                    at += 2
                states[i % lanes] = x
                if symbol == ESCAPE:
                    last -= 1
                    if last < 0:
                        raise BadFileError("a block of ternary data is damaged")
                    symbol = padded[last]
                mask[i] = symbol
        if any(x >> 16 != 1 for x in states):
            raise BadFileError("a block of ternary data is damaged")
        riding = np.array(states, "<u4").astype("<u2").tobytes()
    where = np.unpackbits(mask, bitorder="little").astype(bool)
    if last - at != max(0, (int(where.sum()) + 7) // 8 - 2 * lanes):
        raise BadFileError("a block of ternary data is damaged")
    bits = np.unpackbits(np.frombuffer(riding + padded[at:last], np.uint8), bitorder="little")
    where_negative = np.zeros(len(where), np.uint8)
    where_negative[where] = bits[: where.sum()]
    return mask, np.packbits(where_negative, bitorder="little")
