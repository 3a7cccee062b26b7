"""The coder of what stands beside trellis symbols, in numba: layouts, classes, scales, the index of blocks.

``header_reference.py`` specifies it: bits by adaptive models, and numbers made of them, on one rANS state.
The same functions write and read. Writing, they take down operations, which :func:`_pushed` puts on a state,
the last one first; reading, they fill the arrays that they are given. Arrays that kernels pass on to each
other cost more than what they compute, so all of a coder's state is in one, the *tape*.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from paring.kernels.jit import jit
from paring.kernels.trellis import header_reference as spec
from paring.kernels.trellis import tables
from paring.kernels.trellis.coder import LOW, push

#: what a tape, int64, begins with: is it read; where it is; the state; has it failed. The counts follow.
_READS, _AT, _STATE, _FAILED = range(4)
_SEGMENT, _BLOCK = 40, 16  # operations that one takes, at most
#: x // n is x * _INVERSE[n] >> 36 for all n that counts come to and x up to 4096 n, and is quicker so
_INVERSE = np.array([0, *(-(-(1 << 36) // n) for n in range(1, spec.MOST + spec.STEP + 1))], np.int64)

Ints = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint16]


class Tape:
    """A coder of headers, one that writes with ``room`` for two words an operation, or one that reads.

    What is written as it is read: :meth:`begun`, then :meth:`segments`, then :meth:`index`.
    """

    def __init__(self, room: int) -> None:
        self.words = np.zeros(room, np.uint16)
        self._source = self.words[:0]
        self._tape = np.full(4 + 2 * spec.MODELS, 2, np.int64)
        self._tape[:4] = 0

    @classmethod
    def reading(cls, words: Words) -> Tape:
        """A tape that reads ``words`` (n,), uint16, as far as need be; the first two are the state."""
        made = cls(0)
        made._source = words
        short = len(words) < 2
        state = 0 if short else int(words[0]) | int(words[1]) << 16
        made._tape[:4] = 1, 2, state, short or state < LOW
        return made

    @property
    def at(self) -> int:
        """How many words were read, or (two an operation) would be written if there was room."""
        return int(self._tape[_AT])

    @property
    def ended(self) -> bool:
        """Whether what was read was whole, and ends here."""
        return not self._tape[_FAILED] and int(self._tape[_STATE]) == LOW

    def begun(self, numbers: Ints, layouts: npt.NDArray[np.uint8]) -> None:
        """``numbers`` (4,): log2 of the states, and by layout how many bits scales have behind the leading
        one; the layout code of every tensor.
        """
        self._reach(4 + 2 * len(layouts))
        _begun(self._tape, self.words, numbers, layouts)

    def segments(
        self, numbers: Ints, layouts: npt.NDArray[np.uint8], parts: Sequence[tuple[int, int]],
        classes: npt.NDArray[np.uint8], scales: npt.NDArray[np.uint32],
    ) -> None:  # fmt: skip
        """The class of every segment and the bits of its fp32 scale, of ``parts`` (segments, entries each) by
        tensor.
        """
        owns = np.append(0, np.cumsum([count for count, _ in parts], dtype=np.int64))
        entries = np.array([n for _, n in parts], np.int64)
        last = np.full((3, spec.SIZES, tables.CLASSES + 1), -1, np.int64)
        self._reach(_SEGMENT * len(classes))
        _segments(self._tape, self.words, layouts, entries, owns, numbers[1:], classes, scales, last)

    def index(self, bits: int, lengths: Ints, states: npt.NDArray[np.uint8]) -> None:
        """The length in words of every block, and the state of the trellis that it begins in."""
        self._reach(_BLOCK * len(lengths))
        _index(self._tape, self.words, bits, lengths, states)

    def _reach(self, operations: int) -> None:
        """Have at hand what so many operations read: at most a word each."""
        if self._tape[_READS]:
            self.words = self._source[: self.at + operations].astype(np.uint16)


def written(
    numbers: Ints, layouts: npt.NDArray[np.uint8], parts: Sequence[tuple[int, int]],
    classes: npt.NDArray[np.uint8], scales: npt.NDArray[np.uint32], lengths: Ints,
    states: npt.NDArray[np.uint8],
) -> Words:  # fmt: skip
    """The words (n,), uint16, of a header of all that; a tape reads them."""
    room = 64 + 3 * len(layouts) + 24 * len(classes) + 12 * len(lengths)  # few headers need more
    while True:
        tape = Tape(2 * room)
        tape.begun(numbers.copy(), layouts)
        tape.segments(numbers, layouts, parts, classes, scales)
        tape.index(int(numbers[0]), lengths, states)
        if tape.at <= 2 * room:
            break
        room = tape.at // 2
    words = np.empty(tape.at // 2 + 2, np.uint16)
    return words[_pushed(tape.words[: tape.at], words) :]


@jit()
def _pushed(steps: Any, words: Any) -> int:
    """Code operations, a start and a frequency each, at the end of ``words``; returns where they begin."""
    x, at = LOW, len(words)
    for i in range(len(steps) - 2, -2, -2):
        x, at = push(x, words, at, np.int64(steps[i + 1]), np.int64(steps[i]))
    words[at - 2], words[at - 1] = x & 0xFFFF, x >> 16
    return at - 2


@jit()
def _take(tape: Any, words: Any, start: int, freq: int) -> None:
    if not tape[_READS]:
        at = tape[_AT]
        if at + 1 < len(words):
            words[at], words[at + 1] = start, freq
        tape[_AT] = at + 2
        return
    x = freq * (tape[_STATE] >> 12) + (tape[_STATE] & 4095) - start
    if x < LOW:
        if tape[_AT] >= len(words):
            tape[_FAILED] = 1
            return
        x = x << 16 | np.int64(words[tape[_AT]])
        tape[_AT] += 1
    tape[_STATE] = x


@jit()
def _bit(tape: Any, words: Any, model: int, bit: int) -> int:
    """A bit by its model: the one that is read, or ``bit``."""
    zero, one = 4 + 2 * model, 5 + 2 * model
    zeros, ones = tape[zero], tape[one]
    p = (zeros << 12) * _INVERSE[zeros + ones] >> 36
    if tape[_READS]:
        bit = 1 if (tape[_STATE] & 4095) >= p else 0
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
def _plain(tape: Any, words: Any, width: int, value: int) -> int:
    """``width`` bits as they are, up to twelve at a time."""
    out = 0
    while width > 0:
        some = min(width, 12)
        piece = value >> (width - some) & ((1 << some) - 1)
        if tape[_READS]:
            piece = (tape[_STATE] & 4095) >> (12 - some)
        _take(tape, words, piece << (12 - some), 1 << (12 - some))
        out = out << some | piece
        width -= some
    return out


@jit()
def _natural(tape: Any, words: Any, model: int, value: int) -> int:
    """A number of 0 or more: the length of ``value + 1`` in ones, then what is behind its first bit."""
    whole, length = value + 1, 0
    while length < spec.UNARY and _bit(tape, words, model + 2 + length, 1 if whole >> length > 1 else 0):
        length += 1
    if length == spec.UNARY:
        node = 1
        while whole >> length > 1:
            length += 1
        for place in range(4, -1, -1):
            bit = (length - spec.UNARY) >> place & 1
            node = 2 * node + _bit(tape, words, model + 2 + spec.UNARY + node, bit)
        length = spec.UNARY + node - 32
    if length == 0:
        return 0
    second = _bit(tape, words, model + 2 + spec.UNARY + 32 + length, whole >> (length - 1) & 1)
    rest = _plain(tape, words, length - 1, whole & ((1 << (length - 1)) - 1))
    return (2 + second << (length - 1) | rest) - 1


@jit()
def _number(tape: Any, words: Any, model: int, value: int) -> int:
    """A whole number."""
    if _bit(tape, words, model, 1 if value == 0 else 0):
        return 0
    negative = _bit(tape, words, model + 1, 1 if value < 0 else 0)
    size = _natural(tape, words, model, max(abs(value) - 1, 0)) + 1
    return -size if negative else size


@jit()
def _begun(tape: Any, words: Any, numbers: Any, layouts: Any) -> None:
    numbers[0] = _plain(tape, words, 3, numbers[0] - 2) + 2
    for i in range(1, 4):
        numbers[i] = _plain(tape, words, 5, numbers[i])
    before: Any = 0
    for i in range(len(layouts)):
        layout: Any = np.int64(layouts[i])
        if _bit(tape, words, spec.LAYOUT + 2 * before, 1 if layout else 0):
            layout = 1 + _bit(tape, words, spec.LAYOUT + 2 * before + 1, 1 if layout == 2 else 0)
        else:
            layout = 0
        layouts[i] = before = layout


@jit()
def _class(
    tape: Any, words: Any, layout: Any, sizes: Any, first: bool, left: Any, up: Any,
    corner: Any, cls: Any,
) -> int:  # fmt: skip
    """A class: whether it is 0; whether it is the expected one; else how far from its neighbour."""
    zero = spec.ZERO + 6 * layout + (0 if first else 2 if left == 0 else 4) + (1 if up == 0 else 0)
    if _bit(tape, words, zero, 1 if cls == 0 else 0):
        return 0
    near = left if left else up if up else spec.TYPICAL
    if first:
        return near + _number(tape, words, spec.CLASS + spec.NUMBER * (4 * layout + 1 + sizes), cls - near)
    expected = left + up - corner if left and up and corner else up if up else near
    if _bit(tape, words, spec.EXPECTED + 3 * layout + sizes, 1 if cls == expected else 0):
        return expected
    return near + _number(tape, words, spec.CLASS + spec.NUMBER * 4 * layout, cls - near)


@jit()
def _nearest(table: Any, cls: Any) -> Any:
    """The last scale of the class nearest to ``cls`` that there was, -1 where there was none."""
    for distance in range(len(table)):
        if cls >= distance and table[cls - distance] >= 0:
            return table[cls - distance]
        if cls + distance < len(table) and table[cls + distance] >= 0:
            return table[cls + distance]
    return -1


@jit()
def _segments(
    tape: Any, words: Any, layouts: Any, entries: Any, owns: Any, bits: Any,
    classes: Any, scales: Any, table: Any,
) -> None:  # fmt: skip
    """``owns`` (tensors + 1,) are the first segments of tensors; ``table`` (3, SIZES, classes + 1), -1 at
    first, is for the last scale by layout, length of the number of entries, and class.
    """
    word: Any = spec.ONE
    most = len(table[0, 0]) - 1
    for t in range(len(layouts)):
        layout: Any = np.int64(layouts[t])
        n = entries[t]
        above = owns[t - 1] if t else 0
        others = owns[t] - above if t else 0
        before = entries[t - 1] if t else 0
        sizes = 0 if n < before else 1 if n == before else 2
        length = 0
        while n >> length:
            length += 1
        own, drop = table[layout, length], 23 - bits[layout]
        left: Any = 0
        up: Any = 0
        told = False
        for j in range(owns[t + 1] - owns[t]):
            i = owns[t] + j
            corner = up
            up = np.int64(classes[above + j]) if j < others else 0
            left = _class(tape, words, layout, sizes, j == 0, left, up, corner, np.int64(classes[i]))
            if tape[_FAILED] or left < 0 or left > most:
                tape[_FAILED] = 1
                return
            classes[i] = left
            if left == 0:
                continue
            new: Any = np.int64(scales[i])
            if not told or not _bit(tape, words, spec.SAME + layout, 1 if new == word else 0):
                near = _nearest(own, left)
                near = (word if near < 0 else near) >> drop & (1 << 31 - drop) - 1
                size = (new & 0x7FFFFFFF) >> drop
                size = near + _number(tape, words, spec.SCALE + spec.NUMBER * layout, size - near)
                sign = _bit(tape, words, spec.SIGN + layout, new >> 31)
                if size < 0 or size >> 31 - drop:
                    tape[_FAILED] = 1
                    return
                word = sign << 31 | size << drop
            told = True
            scales[i] = own[left] = word


@jit()
def _index(tape: Any, words: Any, bits: Any, lengths: Any, states: Any) -> None:
    """The length of every block in words, and the state that its trellis begins in: 0 for the first block."""
    for i in range(len(lengths)):
        lengths[i] = _natural(tape, words, spec.LENGTH, lengths[i])
        if i:
            state: Any = np.int64(states[i])
            states[i] = _plain(tape, words, bits, state)
        if tape[_FAILED]:
            return
