"""The decoder of blocks as numba loops over many blocks, pieces and segments in one call.

A block is copied into scratch that no block, damaged or not, can make the loops leave, and is checked
afterwards to have been used up exactly: the loops need no checks. ``reference.py`` says what a block is.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from paring.kernels.jit import jit
from paring.kernels.ternary.counting import ones
from paring.kernels.ternary.reference import BLOCK, LANES
from paring.kernels.ternary.tables import COUNT, DEPOSIT

#: the most bytes that a block takes: the index has 14 bits for it (a block of ones only takes less than its
#: planes)
MOST = 2 * BLOCK - 1
_LANES = np.array(LANES)


@jit(inline="always")
def _step(slot: Any, words: Any, w: Any, x: Any) -> Any:
    """One symbol out of the state ``x``: the next state, the next word, the symbol. Free of branches."""
    low = x & np.uint64(4095)
    word = np.uint64(words[w])
    x = np.uint64(slot[low]) * (x >> np.uint64(12)) + np.uint64(slot[low + np.uint64(4096)])
    more = x < np.uint64(65536)
    longer = x << np.uint64(16) | word
    x = longer if more else x
    return x, w + np.uint64(more), slot[low + np.uint64(8192)]


@jit()
def _run4(slot: Any, words: Any, w: Any, masks: Any, states: Any) -> Any:
    """Symbols of four lanes, lane 0 first, to ``masks`` (a multiple of 4); the next word."""
    x0, x1, x2, x3 = states[0], states[1], states[2], states[3]
    for i in range(len(masks) >> 2):
        at = np.uint64(4 * i)
        x0, w, masks[at] = _step(slot, words, w, x0)
        x1, w, masks[at + np.uint64(1)] = _step(slot, words, w, x1)
        x2, w, masks[at + np.uint64(2)] = _step(slot, words, w, x2)
        x3, w, masks[at + np.uint64(3)] = _step(slot, words, w, x3)
    states[0], states[1], states[2], states[3] = x0, x1, x2, x3
    return w


@jit()
def _run8(slot: Any, words: Any, w: Any, masks: Any, states: Any) -> Any:
    """Symbols of eight lanes, lane 0 first, to ``masks`` (a multiple of 8); the next word."""
    x0, x1, x2, x3 = states[0], states[1], states[2], states[3]
    x4, x5, x6, x7 = states[4], states[5], states[6], states[7]
    for i in range(len(masks) >> 3):
        at = np.uint64(8 * i)
        x0, w, masks[at + np.uint64(0)] = _step(slot, words, w, x0)
        x1, w, masks[at + np.uint64(1)] = _step(slot, words, w, x1)
        x2, w, masks[at + np.uint64(2)] = _step(slot, words, w, x2)
        x3, w, masks[at + np.uint64(3)] = _step(slot, words, w, x3)
        x4, w, masks[at + np.uint64(4)] = _step(slot, words, w, x4)
        x5, w, masks[at + np.uint64(5)] = _step(slot, words, w, x5)
        x6, w, masks[at + np.uint64(6)] = _step(slot, words, w, x6)
        x7, w, masks[at + np.uint64(7)] = _step(slot, words, w, x7)
    states[0], states[1], states[2], states[3] = x0, x1, x2, x3
    states[4], states[5], states[6], states[7] = x4, x5, x6, x7
    return w


@jit()
def _unescape(masks: Any, mark: int, raw: Any, end: int) -> int:
    """Replace each marker by the next escaped mask, found backwards from raw[end]; their begin or -1."""
    marker = np.uint8(mark)
    for start in range(0, len(masks), 64):  # few of these hold any, and LLVM compares them as vectors
        part = masks[start : start + 64]
        some = False
        for i in range(len(part)):
            some |= part[i] == marker
        for i in range(len(part) if some else 0):
            if part[i] == marker:
                if end == 0:
                    return -1
                end -= 1
                part[i] = raw[end]
    return end


@jit()
def _masks(data: Any, mode: int, pieces: Any, first: int, last: int, classes: Any, slots: Any, markers: Any,
           raw: Any, masks: Any, signs: Any) -> bool:  # fmt: skip
    """Decode a block's masks, and bring its sign bits together; False if it is damaged."""
    start = pieces[first]
    size = len(data)
    lanes = _LANES[mode]
    raw[:size] = data
    at: Any = 0
    end = size
    if not classes[first:last].any():
        masks[: pieces[last] - start] = 0
        return size == 0
    if mode == 0:
        at = pieces[last] - start
        if at > size:
            return False
        masks[:at] = raw[:at]
    else:
        states = raw[:32].view(np.uint32).astype(np.uint64)
        words = raw.view(np.uint16)
        w = np.uint64(2 * lanes)
        for p in range(first, last):
            a, b, j = pieces[p] - start, pieces[p + 1] - start, classes[p]
            if j == 0:
                masks[a:b] = 0
                continue
            i = a
            while i < b:
                if lanes >= 4 and i % lanes == 0 and b - i >= lanes:
                    whole = i + (b - i) // lanes * lanes
                    if lanes == 4:
                        w = _run4(slots[j], words, w, masks[i:whole], states)
                    else:
                        w = _run8(slots[j], words, w, masks[i:whole], states)
                    i = whole
                else:
                    lane = i & (lanes - 1)
                    states[lane], w, masks[i] = _step(slots[j], words, w, states[lane])
                    i += 1
            if markers[j] >= 0:
                end = _unescape(masks[a:b], markers[j], raw, end)
                if end < 0:
                    return False
        at = 2 * np.int64(w)
        for lane in range(lanes):
            if states[lane] >> np.uint64(16) != 1:
                return False
            signs[2 * lane] = states[lane] & np.uint64(255)
            signs[2 * lane + 1] = states[lane] >> np.uint64(8) & np.uint64(255)
    count = ones(masks, 0, pieces[last] - start)
    rest = max(0, (count + 7 >> 3) - 2 * lanes)
    if end - at != rest:
        return False
    signs[2 * lanes : 2 * lanes + rest] = raw[at:end]
    return True


@jit()
def _fill_table(table: Any, plus: Any, minus: Any) -> None:
    """By mask nibble and the next four sign bits: four entries (256, 4)."""
    for m in range(16):
        for bits in range(16):
            left = bits
            for lane in range(4):
                one = m >> lane & 1
                table[16 * m + bits, lane] = (minus if left & 1 else plus) if one else 0
                left >>= one


@jit(inline="always")
def _window(signs: Any, bit: Any) -> Any:
    """32 bits or more of ``signs`` (uint32 words) from ``bit`` on: enough for four symbols."""
    at = np.uint64(bit >> 5)
    return (np.int64(signs[at]) | np.int64(signs[at + np.uint64(1)]) << 32) >> (bit & 31)


@jit()
def _quads16(masks: Any, signs: Any, bit: Any, table: Any, words: Any) -> Any:
    """Four symbols at a time to 16-bit entries, four of them a word of ``table`` (256,) and ``words``."""
    for i in range(len(masks) >> 2):
        bits = _window(signs, bit)
        for k in range(4):
            m = np.uint64(masks[np.uint64(4 * i + k)])
            low = m & np.uint64(15)
            words[np.uint64(8 * i + 2 * k)] = table[low << np.uint64(4) | np.uint64(bits & 15)]
            bits >>= COUNT[low]
            words[np.uint64(8 * i + 2 * k + 1)] = table[m & np.uint64(240) | np.uint64(bits & 15)]
            bits >>= COUNT[m >> np.uint64(4)]
            bit += COUNT[m]
    return bit


@jit()
def _dense(masks: Any, a: int, n: int, signs: Any, bit: Any, table: Any, out: Any, at: int) -> Any:
    """Write the ``n`` entries from masks[a] on to out[at:], signs from ``bit`` on; the bit behind them."""
    wide = table.view(np.uint64)
    words = out.view(np.uint64)
    per = wide.shape[1]
    done = 0
    if at * per & 3 == 0:
        quads = n >> 5
        done = quads << 5
        if per == 1:
            bit = _quads16(masks[a : a + 4 * quads], signs, bit, wide.reshape(256 * per), words[at >> 2 :])
        else:
            word = at * per >> 2
            for i in range(a, a + 4 * quads):
                m, bits = np.int64(masks[i]), _window(signs, bit)
                low = (m & 15) << 4 | (bits & 15)
                high = (m & 240) | (bits >> COUNT[m & 15] & 15)
                bit += COUNT[m]
                for j in range(per):
                    words[word + j] = wide[low, j]
                    words[word + per + j] = wide[high, j]
                word += 2 * per
    for i in range(done, n):
        one = np.int64(masks[a + (i >> 3)]) >> (i & 7) & 1
        out[at + i] = table[16 * one + (signs[bit >> 5] >> (bit & 31) & 1), 0]
        bit += one
    return bit


@jit()
def decode_dense(
    data: Any, starts: Any, index: Any, todo: Any, pieces: Any, firsts: Any, classes: Any, slots: Any,
    markers: Any, owner: Any, begins: Any, lengths: Any, targets: Any, values: Any, out: Any,
) -> Any:  # fmt: skip
    """Decode the blocks ``todo`` into dense entries; the first damaged block, or -1.

    ``data``: the coded blocks, which begin at ``starts`` (blocks + 1,); ``index``, ``pieces``, ``firsts``,
    ``classes`` as in ``encoder.encode_blocks``; ``slots`` and ``markers``: of ``tables``; ``owner``
    (pieces,): the segment of a piece. Of each segment: ``begins``, its first symbol; ``lengths``, its
    entries; ``targets``, where in ``out`` it goes, or -1; ``values`` (segments, 2): the bits of +1 and -1.
    ``out`` is of the dtype of ``values``, an unsigned one of 2, 4 or 8 bytes, and takes a multiple of 8
    bytes.
    """
    raw, masks, signs = _scratch()
    table = np.zeros((256, 4), out.dtype)
    for block in todo:
        if not _masks(data[starts[block] : starts[block + 1]], index[block] >> 14, pieces, firsts[block],
                      firsts[block + 1], classes, slots, markers, raw, masks, signs):  # fmt: skip
            return int(block)
        bit = 0
        for p in range(firsts[block], firsts[block + 1]):
            a = pieces[p] - pieces[firsts[block]]
            b = pieces[p + 1] - pieces[firsts[block]]
            s = owner[p]
            if targets[s] < 0:
                bit += ones(masks, a, b)
                continue
            if table[16, 0] != values[s, 0] or table[17, 0] != values[s, 1]:
                _fill_table(table, values[s, 0], values[s, 1])
            done = 8 * (pieces[p] - begins[s])
            n = min(8 * (b - a), lengths[s] - done)
            bit = _dense(masks, a, n, signs.view(np.uint32), bit, table, out, targets[s] + done)
            # a damaged last symbol may have ones behind the last entry
            if n < 8 * (b - a):
                bit += COUNT[masks[b - 1] >> (n & 7)]
    return -1


@jit()
def decode_planes(
    data: Any, starts: Any, index: Any, todo: Any, pieces: Any, firsts: Any, classes: Any, slots: Any,
    markers: Any, owner: Any, begins: Any, targets: Any, mask: Any, sign: Any,
) -> Any:  # fmt: skip
    """As :func:`decode_dense`, but to planes; ``targets`` are in symbols."""
    raw, masks, signs = _scratch()
    words = signs.view(np.uint32)
    for block in todo:
        if not _masks(data[starts[block] : starts[block + 1]], index[block] >> 14, pieces, firsts[block],
                      firsts[block + 1], classes, slots, markers, raw, masks, signs):  # fmt: skip
            return int(block)
        bit = 0
        for p in range(firsts[block], firsts[block + 1]):
            target = targets[owner[p]]
            at = target + pieces[p] - begins[owner[p]]
            for i in range(pieces[p] - pieces[firsts[block]], pieces[p + 1] - pieces[firsts[block]]):
                m = np.int64(masks[i])
                if target >= 0:
                    bits = (np.int64(words[bit >> 5]) | np.int64(words[(bit >> 5) + 1]) << 32) >> (bit & 31)
                    high = DEPOSIT[(m & 240) | (bits >> COUNT[m & 15] & 15)]
                    mask[at] = m
                    sign[at] = DEPOSIT[(m & 15) << 4 | (bits & 15)] | high << 4
                    at += 1
                bit += COUNT[m]
    return -1


@jit()
def _scratch() -> Any:
    """A coded block and what its words may be read beyond; the masks of a block; its sign bits."""
    return np.zeros(4 * BLOCK, np.uint8), np.zeros(BLOCK, np.uint8), np.zeros(BLOCK + 64, np.uint8)
