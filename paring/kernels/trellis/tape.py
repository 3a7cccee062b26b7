"""Bits by adaptive models, and numbers made of them, on one rANS state, in numba. ``header_reference.py``
specifies them.

The same functions write and read. Writing, they take down operations, which :func:`pushed` then puts on a
state, the last one first; reading, they return what they read, whatever they are given. Arrays that kernels
pass on to each other cost more than what they compute, so all of a coder's state is in one, the *tape*.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from paring.kernels.jit import jit
from paring.kernels.trellis import header_reference as spec
from paring.kernels.trellis.coder import LOW, push

#: what a tape, int64, begins with: is it read; where it is; the state; has it failed. The counts follow.
READS, AT, STATE, FAILED = range(4)
#: x // n is x * INVERSE[n] >> 36 for all n that counts come to and x up to 4096 n, and is quicker so
INVERSE = np.array([0, *(-(-(1 << 36) // n) for n in range(1, spec.MOST + spec.STEP + 1))], np.int64)


@jit()
def pushed(steps: Any, words: Any) -> int:
    """Code operations, a start and a frequency each, at the end of ``words``; returns where they begin."""
    x, at = LOW, len(words)
    for i in range(len(steps) - 2, -2, -2):
        x, at = push(x, words, at, np.int64(steps[i + 1]), np.int64(steps[i]))
    words[at - 2], words[at - 1] = x & 0xFFFF, x >> 16
    return at - 2


@jit()
def _take(tape: Any, words: Any, start: int, freq: int) -> None:
    if not tape[READS]:
        at = tape[AT]
        if at + 1 < len(words):
            words[at], words[at + 1] = start, freq
        tape[AT] = at + 2
        return
    x = freq * (tape[STATE] >> 12) + (tape[STATE] & 4095) - start
    if x < LOW:
        if tape[AT] >= len(words):
            tape[FAILED] = 1
            return
        x = x << 16 | np.int64(words[tape[AT]])
        tape[AT] += 1
    tape[STATE] = x


@jit()
def flag(tape: Any, words: Any, model: int, bit: int) -> int:
    """A bit by its model: the one that is read, or ``bit``."""
    zero, one = 4 + 2 * model, 5 + 2 * model
    zeros, ones = tape[zero], tape[one]
    p = (zeros << 12) * INVERSE[zeros + ones] >> 36
    if tape[READS]:
        bit = 1 if (tape[STATE] & 4095) >= p else 0
    if bit:
        _take(tape, words, p, 4096 - p)
    else:
        _take(tape, words, 0, p)
    if bit:
        ones += spec.STEP
    else:
        zeros += spec.STEP
    if zeros + ones > spec.MOST:
        zeros, ones = (zeros + 1) >> 1, (ones + 1) >> 1
    tape[zero], tape[one] = zeros, ones
    return bit


@jit()
def plain(tape: Any, words: Any, width: int, value: int) -> int:
    """``width`` bits as they are, up to twelve at a time."""
    out = 0
    while width > 0:
        some = min(width, 12)
        piece = value >> (width - some) & ((1 << some) - 1)
        if tape[READS]:
            piece = (tape[STATE] & 4095) >> (12 - some)
        _take(tape, words, piece << (12 - some), 1 << (12 - some))
        out = out << some | piece
        width -= some
    return out


@jit()
def natural(tape: Any, words: Any, model: int, value: int) -> int:
    """A number of 0 or more: the length of ``value + 1`` in ones, then what is behind its first bit."""
    whole, length = value + 1, 0
    while length < spec.UNARY and flag(tape, words, model + 2 + length, 1 if whole >> length > 1 else 0):
        length += 1
    if length == spec.UNARY:
        node = 1
        while whole >> length > 1:
            length += 1
        for place in range(4, -1, -1):
            bit = (length - spec.UNARY) >> place & 1
            node = 2 * node + flag(tape, words, model + 2 + spec.UNARY + node, bit)
        length = spec.UNARY + node - 32
    if length == 0:
        return 0
    second = flag(tape, words, model + 2 + spec.UNARY + 32 + length, whole >> (length - 1) & 1)
    rest = plain(tape, words, length - 1, whole & ((1 << (length - 1)) - 1))
    return (2 + second << (length - 1) | rest) - 1


@jit()
def number(tape: Any, words: Any, model: int, value: int) -> int:
    """A whole number."""
    if flag(tape, words, model, 1 if value == 0 else 0):
        return 0
    negative = flag(tape, words, model + 1, 1 if value < 0 else 0)
    size = natural(tape, words, model, max(abs(value) - 1, 0)) + 1
    return -size if negative else size
