"""The entropy coder of trellis symbols (rANS, one lane a block), in numba. ``reference.py`` specifies it."""

from __future__ import annotations

from typing import Any

import numpy as np

from paring.kernels.jit import jit

LOW = 1 << 16  # a state is in [2^16, 2^32) between symbols


@jit()
def walk(k: Any, begins: Any, following: Any, block: int, quantiser: Any, states: Any) -> None:
    """The quantiser of every symbol, and the trellis state in which every block of symbols begins."""
    for segment in range(len(begins) - 1):
        state = 0
        for i in range(begins[segment], begins[segment + 1]):
            if i % block == 0:
                states[i // block] = state
            quantiser[i] = state & 1
            state = following[state, np.int64(k[i]) & 1]


@jit()
def push(x: int, words: Any, at: int, freq: Any, start: Any) -> tuple[int, int]:
    """Put a symbol on the state, backwards; words leave it from the end of ``words`` on."""
    if x >= freq << 20:
        at -= 1
        words[at] = x & 0xFFFF
        x >>= 16
    return (x // freq << 12) + x % freq + start, at


@jit()
def encode_block(
    k: Any, quantiser: Any, first: int, last: int, begins: Any, classes: Any,
    freq: Any, start: Any, shifts: Any, words: Any,
) -> int:  # fmt: skip
    """Code the symbols first .. last - 1 at the end of ``words``, uint16; returns where the block begins."""
    x, at = LOW, len(words)
    segment = np.searchsorted(begins, last - 1, "right") - 1
    for i in range(last - 1, first - 1, -1):
        while i < begins[segment]:
            segment -= 1
        cls, q = classes[segment], quantiser[i]
        value: Any = np.int64(k[i])
        low: Any = np.int64(shifts[cls])
        y = value >> low
        symbol = y + 16
        if y < -16 or y >= 16 or freq[cls, q, symbol] == 0:
            symbol = 32
            x, at = push(x, words, at, 16, (value & 0xFF) << 4)
            x, at = push(x, words, at, 16, (value >> 8 & 0xFF) << 4)
        elif low:
            x, at = push(x, words, at, 1 << (12 - low), (value & ((1 << low) - 1)) << (12 - low))
        x, at = push(x, words, at, np.int64(freq[cls, q, symbol]), np.int64(start[cls, q, symbol]))
    words[at - 2], words[at - 1] = x & 0xFFFF, x >> 16
    return at - 2


@jit()
def decode_block(
    words: Any, first: int, last: int, state: int, begins: Any, classes: Any,
    slots: Any, freq: Any, start: Any, shifts: Any, following: Any, out: Any,
) -> bool:  # fmt: skip
    """The levels, int32, of the symbols first .. last - 1 into ``out`` from its beginning; whether they
    decode.

    ``words`` (n,), uint16, are those of the block; no more of them is read than there is, whatever they say.
    """
    if len(words) < 2:
        return False
    x: Any = np.int64(words[0]) | np.int64(words[1]) << 16
    at, count = 2, len(words)
    if x < LOW:
        return False
    segment = np.searchsorted(begins, first, "right") - 1
    for i in range(first, last):
        while i >= begins[segment + 1]:
            segment += 1
            state = 0
        cls, q = classes[segment], state & 1
        slot = x & 4095
        symbol = np.int64(slots[cls, q, slot])
        x = np.int64(freq[cls, q, symbol]) * (x >> 12) + slot - np.int64(start[cls, q, symbol])
        if x < LOW:
            if at == count:
                return False
            x = x << 16 | np.int64(words[at])
            at += 1
        bits: Any = np.int64(shifts[cls])
        value: Any = symbol - 16
        pieces = 1 if bits else 0
        if symbol == 32:
            value, pieces, bits = 0, 2, 8
        for _ in range(pieces):
            slot = x & 4095
            raw = slot >> (12 - bits)
            x = (x >> 12 << (12 - bits)) + slot - (raw << (12 - bits))
            if x < LOW:
                if at == count:
                    return False
                x = x << 16 | np.int64(words[at])
                at += 1
            value = value << bits | raw
        if symbol == 32 and value >= 1 << 15:
            value -= 1 << 16
        level = 2 * value
        if q:
            level -= int(level > 0) - int(level < 0)
        out[i - first] = level
        state = following[state, value & 1]
    return x == LOW and at == count
