"""The coder of what stands beside trellis symbols, in numba: layouts, classes, scales, the index of blocks.

``header_reference.py`` specifies it. The same functions write and read (see ``tape.py``): writing, they leave
the arrays that they are given as they are; reading, they fill them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from paring.kernels.jit import jit
from paring.kernels.trellis import header_reference as spec
from paring.kernels.trellis import tables
from paring.kernels.trellis.coder import LOW
from paring.kernels.trellis.tape import AT, FAILED, READS, STATE, flag, natural, number, plain, pushed

_SEGMENT, _BLOCK = 40, 16  # operations that one takes, at most

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
        return int(self._tape[AT])

    @property
    def ended(self) -> bool:
        """Whether what was read was whole, and ends here."""
        return not self._tape[FAILED] and int(self._tape[STATE]) == LOW

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
        """``classes`` (segments,) and ``scales`` (segments,), the bits of fp32, of the segments of all
        tensors; ``parts`` are, of each tensor, how many segments it has, of how many entries each.
        """
        owns = np.append(0, np.cumsum([count for count, _ in parts], dtype=np.int64))
        entries = np.array([n for _, n in parts], np.int64)
        last = np.full((3, spec.SIZES, tables.CLASSES + 1), -1, np.int64)
        self._reach(_SEGMENT * len(classes))
        _segments(self._tape, self.words, layouts, entries, owns, numbers[1:], classes, scales, last)

    def index(self, bits: int, lengths: Ints, states: npt.NDArray[np.uint8]) -> None:
        """``lengths`` (blocks,) in words, and ``states`` (blocks,) of the trellis that each begins in."""
        self._reach(_BLOCK * len(lengths))
        _index(self._tape, self.words, bits, lengths, states)

    def _reach(self, operations: int) -> None:
        """Have at hand what so many operations read: at most a word each."""
        if self._tape[READS]:
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
    return words[pushed(tape.words[: tape.at], words) :]


@jit()
def _begun(tape: Any, words: Any, numbers: Any, layouts: Any) -> None:
    numbers[0] = plain(tape, words, 3, numbers[0] - 2) + 2
    for i in range(1, 4):
        numbers[i] = plain(tape, words, 5, numbers[i])
    before: Any = 0
    for i in range(len(layouts)):
        layout: Any = np.int64(layouts[i])
        if flag(tape, words, spec.LAYOUT + 2 * before, 1 if layout else 0):
            layout = 1 + flag(tape, words, spec.LAYOUT + 2 * before + 1, 1 if layout == 2 else 0)
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
    if flag(tape, words, zero, 1 if cls == 0 else 0):
        return 0
    near = left if left else up if up else spec.TYPICAL
    if first:
        return near + number(tape, words, spec.CLASS + spec.NUMBER * (4 * layout + 1 + sizes), cls - near)
    expected = left + up - corner if left and up and corner else up if up else near
    if flag(tape, words, spec.EXPECTED + 3 * layout + sizes, 1 if cls == expected else 0):
        return expected
    return near + number(tape, words, spec.CLASS + spec.NUMBER * 4 * layout, cls - near)


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
            if tape[FAILED] or left < 0 or left > most:
                tape[FAILED] = 1
                return
            classes[i] = left
            if left == 0:
                continue
            new: Any = np.int64(scales[i])
            if not told or not flag(tape, words, spec.SAME + layout, 1 if new == word else 0):
                near = _nearest(own, left)
                near = (word if near < 0 else near) >> drop & (1 << 31 - drop) - 1
                size = (new & 0x7FFFFFFF) >> drop
                size = near + number(tape, words, spec.SCALE + spec.NUMBER * layout, size - near)
                sign = flag(tape, words, spec.SIGN + layout, new >> 31)
                if size < 0 or size >> 31 - drop:
                    tape[FAILED] = 1
                    return
                word = sign << 31 | size << drop
            told = True
            scales[i] = own[left] = word


@jit()
def _index(tape: Any, words: Any, bits: Any, lengths: Any, states: Any) -> None:
    """The length of every block in words, and the state that its trellis begins in: 0 for the first block."""
    for i in range(len(lengths)):
        lengths[i] = natural(tape, words, spec.LENGTH, lengths[i])
        if i:
            state: Any = np.int64(states[i])
            states[i] = plain(tape, words, bits, state)
        if tape[FAILED]:
            return
