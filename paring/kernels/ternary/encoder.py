"""The encoder of blocks as a numba loop over many of them in one call; ``reference.py`` says what it does."""

from __future__ import annotations

from typing import Any

import numpy as np

from paring.kernels.jit import jit
from paring.kernels.ternary.reference import BLOCK, LANES
from paring.kernels.ternary.tables import COUNT, EXTRACT

_LANES = np.array(LANES)
_KEEP = 2 * 65536  # a piece leaves the class of the one before it for two bits or more


@jit()
def _classify(mask: Any, a: int, b: int, before: int, costs: Any) -> int:
    counts = np.zeros(9, np.int64)
    for i in range(a, b):
        counts[COUNT[mask[i]]] += 1
    if counts[0] == b - a:
        return 0
    best, least, stay = 0, 0, 0
    for j in range(1, costs.shape[0]):
        bits = 0
        for p in range(9):
            bits += counts[p] * costs[j, p]
        if best == 0 or bits < least:
            best, least = j, bits
        if j == before:
            stay = bits
    return before if before > 0 and stay <= least + _KEEP else best


@jit()
def _signs(mask: Any, sign: Any, a: int, b: int, out: Any) -> int:
    """Gather the sign bits of the ones of mask[a:b] into the bytes of ``out``, zeros behind; their number."""
    buffer, filled, at = 0, 0, 0
    for i in range(a, b):
        m, s = np.int64(mask[i]), np.int64(sign[i])
        low = COUNT[m & 15]
        bits = EXTRACT[(m & 15) << 4 | (s & 15)] | np.int64(EXTRACT[(m & 240) | s >> 4]) << low
        buffer |= bits << filled
        filled += COUNT[m]
        while filled >= 8:
            out[at] = buffer & 255
            buffer >>= 8
            filled -= 8
            at += 1
    out[at : at + 17] = 0
    out[at] = buffer
    return 8 * at + filled


@jit()
def encode_blocks(
    mask: Any, sign: Any, pieces: Any, firsts: Any, costs: Any, table: Any, classes: Any, index: Any, out: Any
) -> int:
    """Code blocks of planes; the number of bytes written to ``out``.

    ``mask`` and ``sign`` (symbols,); ``pieces`` (pieces + 1,): where pieces start, in symbols; ``firsts``
    (blocks + 1,): the first piece of each block; ``costs``, ``table``: of
    ``tables.encoding_tables``. Writes ``classes`` (pieces,), ``index`` (blocks,): bytes | mode << 14, and
    ``out``, which has room for 2 * symbols + 64.
    """
    signs = np.empty(BLOCK + 32, np.uint8)
    words = np.empty(BLOCK, np.uint16)
    escaped = np.empty(BLOCK, np.uint8)
    states = np.empty(8, np.int64)
    total = 0
    for block in range(len(index)):
        first, last = firsts[block], firsts[block + 1]
        start, end = pieces[first], pieces[last]
        before = 0
        some = False
        for p in range(first, last):
            before = _classify(mask, pieces[p], pieces[p + 1], before, costs)
            classes[p] = before
            some |= before > 0
        index[block] = 0
        if not some:
            continue
        n = _signs(mask, sign, start, end, signs)
        mode = 3 if n >= 1024 else 2 if n >= 64 else 1
        lanes = _LANES[mode]
        for lane in range(lanes):
            states[lane] = 65536 + signs[2 * lane] + 256 * np.int64(signs[2 * lane + 1])
        w = e = 0
        for p in range(last - 1, first - 1, -1):
            j = classes[p]
            if j == 0:
                continue
            for i in range(pieces[p + 1] - 1, pieces[p] - 1, -1):
                entry = table[j, mask[i]]
                if entry >> 16 == 0:
                    entry = table[j, 256]
                    escaped[e] = mask[i]
                    e += 1
                f = entry >> 16
                lane = (i - start) & (lanes - 1)
                x = states[lane]
                if x >= f << 20:
                    words[w] = x & 65535
                    w += 1
                    x >>= 16
                q = np.int64(np.uint32(x) // np.uint32(f))
                states[lane] = (q << 12) + x - q * f + (entry & 65535)
        rest = max(0, (n + 7 >> 3) - 2 * lanes)
        size = 4 * lanes + 2 * w + rest + e
        plain = end - start + (n + 7 >> 3)
        if size >= plain:
            out[total : total + end - start] = mask[start:end]
            out[total + end - start : total + plain] = signs[: n + 7 >> 3]
            index[block] = plain
            total += plain
            continue
        index[block] = size | mode << 14
        for lane in range(lanes):
            for k in range(4):
                out[total + 4 * lane + k] = states[lane] >> 8 * k & 255
        total += 4 * lanes
        for i in range(w):
            out[total + 2 * i] = words[w - 1 - i] & 255
            out[total + 2 * i + 1] = words[w - 1 - i] >> 8
        total += 2 * w
        out[total : total + rest] = signs[2 * lanes : 2 * lanes + rest]
        out[total + rest : total + rest + e] = escaped[:e]
        total += rest + e
    return total
