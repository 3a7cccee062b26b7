"""What stands beside trellis symbols, read plainly: the specification of ``header.py``.

Segments of neighbouring tensors are alike: the two sides of a module have classes that differ by a constant,
classes fall from segment to segment, scales follow from classes. So a class is told by those before it in its
tensor and in the tensor before, a scale by the last one of the nearest class; what is left to tell is coded
by models that learn (Krichevsky and Trofimov 1981, with .4 in place of their half).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from paring.errors import BadFileError
from paring.kernels.trellis import tables

STEP, MOST = 5, 2048  # of the counts of a model, that begin with 2
TYPICAL = 10  #: the class that is expected where there is none to tell it
ONE = 127 << 23  #: the scale that is expected where there is none to tell it, 1.0
SIZES = 64  #: lengths of the number of a segment's entries
UNARY = 4
#: models of a number: is it 0; is it negative; is it longer; how long is it, a tree; the bit behind the first
NUMBER = 2 + UNARY + 32 + 36
LAYOUT = 0  # [layout before][whole or not, rows or columns]
ZERO = LAYOUT + 6  # [layout][first, behind a zero, behind another][is there one above]
EXPECTED = ZERO + 18  # [layout][entries: fewer, as many or more than above]
SAME = EXPECTED + 9  # [layout]
SIGN = SAME + 3  # [layout]
CLASS = SIGN + 3  # [layout][not the first; the first, by entries as above], numbers
SCALE = CLASS + 12 * NUMBER  # [layout], numbers
LENGTH = SCALE + 3 * NUMBER  # a number
MODELS = LENGTH + NUMBER

_LOW = 1 << 16


class Header:
    """A header in ``data``, read from its beginning: :meth:`begun`, :meth:`segments`, :meth:`index`, all of
    them once; :meth:`end` says where it ends. Raises BadFileError on bytes that are not a header.
    """

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 4
        self._x = int.from_bytes(data[:4], "little")
        if len(data) < 4 or self._x < _LOW:
            raise BadFileError("a header of trellis data begins in a state that no coder leaves")
        self._counts = [[2, 2] for _ in range(MODELS)]

    def begun(self, tensors: int) -> tuple[int, list[int], list[int]]:
        """log2 of the states; by layout, how many bits scales have behind the leading one; all layouts."""
        bits = self._plain(3) + 2
        mantissas = [self._plain(5) for _ in range(3)]
        layouts, before = [], 0
        for _ in range(tensors):
            model = LAYOUT + 2 * before
            before = 1 + self._bit(model + 1) if self._bit(model) else 0
            layouts.append(before)
        return bits, mantissas, layouts

    def segments(
        self, layouts: Sequence[int], parts: Sequence[tuple[int, int]], mantissas: Sequence[int]
    ) -> tuple[list[int], npt.NDArray[np.float32]]:
        """The class of every segment, and its scale (segments,), 0 for those of class 0. ``parts`` says of
        every tensor how many segments it has, of how many entries each. Raises BadFileError.
        """
        classes: list[int] = []
        words: list[int] = []
        last: dict[tuple[int, int], dict[int, int]] = {}  # (layout, length of n) -> class -> scale
        above: list[int] = []
        before, word = 0, ONE
        for layout, (count, n) in zip(layouts, parts, strict=True):
            entries = 0 if n < before else 1 if n == before else 2
            alike = last.setdefault((layout, n.bit_length()), {})
            mine: list[int] = []
            told = False
            for _ in range(count):
                cls = self._class(layout, entries, mine, above)
                if not 0 <= cls <= tables.CLASSES:
                    raise BadFileError("a header of trellis data has an unknown class")
                mine.append(cls)
                if cls and not (told and self._bit(SAME + layout)):
                    near = alike[min(alike, key=lambda c: (abs(c - cls), c))] if alike else word
                    word = self._scale(layout, near, 23 - mantissas[layout])
                if cls:
                    told, alike[cls] = True, word
                words.append(word if cls else 0)
            classes += mine
            above, before = mine, n
        return classes, np.array(words, np.uint32).view(np.float32)

    def _class(self, layout: int, entries: int, mine: list[int], above: list[int]) -> int:
        j = len(mine)
        left, up = mine[-1] if mine else 0, above[j] if j < len(above) else 0
        corner = above[j - 1] if mine and j - 1 < len(above) else 0
        place = 0 if not mine else 1 if not left else 2
        if self._bit(ZERO + 6 * layout + 2 * place + (not up)):
            return 0
        near = left or up or TYPICAL
        if not mine:
            return near + self._number(CLASS + NUMBER * (4 * layout + 1 + entries))
        expected = left + up - corner if left and up and corner else up or near
        if self._bit(EXPECTED + 3 * layout + entries):
            return expected
        return near + self._number(CLASS + NUMBER * 4 * layout)

    def _scale(self, layout: int, near: int, drop: int) -> int:
        size = ((near & 0x7FFFFFFF) >> drop) + self._number(SCALE + NUMBER * layout)
        negative = self._bit(SIGN + layout)
        if not 0 <= size < 1 << (31 - drop):
            raise BadFileError("a header of trellis data has a scale that is no number")
        return negative << 31 | size << drop

    def index(self, bits: int, blocks: int) -> tuple[list[int], list[int]]:
        """The length in words of every block, and the state of the trellis that it begins in."""
        lengths, states = [], []
        for i in range(blocks):
            lengths.append(self._natural(LENGTH))
            states.append(self._plain(bits) if i else 0)
        return lengths, states

    def end(self) -> int:
        """The number of bytes read. Raises BadFileError where the header does not end here."""
        if self._x != _LOW:
            raise BadFileError("a header of trellis data does not end where it should")
        return self._at

    def _take(self, start: int, freq: int) -> None:
        self._x = freq * (self._x // 4096) + self._x % 4096 - start
        if self._x < _LOW:
            word = self._data[self._at : self._at + 2]
            if len(word) < 2:
                raise BadFileError("a header of trellis data is cut short")
            self._x = self._x << 16 | int.from_bytes(word, "little")
            self._at += 2

    def _bit(self, model: int) -> int:
        counts = self._counts[model]
        p = 4096 * counts[0] // sum(counts)
        bit = int(self._x % 4096 >= p)
        self._take(*((p, 4096 - p) if bit else (0, p)))
        counts[bit] += STEP
        if sum(counts) > MOST:
            counts[:] = [(count + 1) // 2 for count in counts]
        return bit

    def _plain(self, width: int) -> int:
        out = 0
        while width:
            some = min(width, 12)
            piece = self._x % 4096 >> (12 - some)
            self._take(piece << (12 - some), 1 << (12 - some))
            out, width = out << some | piece, width - some
        return out

    def _natural(self, model: int) -> int:
        length = 0
        while length < UNARY and self._bit(model + 2 + length):
            length += 1
        if length == UNARY:
            node = 1
            for _ in range(5):
                node = 2 * node + self._bit(model + 2 + UNARY + node)
            length += node - 32
        if not length:
            return 0
        second = self._bit(model + 2 + UNARY + 32 + length)
        return ((2 | second) << (length - 1) | self._plain(length - 1)) - 1

    def _number(self, model: int) -> int:
        if self._bit(model):
            return 0
        negative = self._bit(model + 1)
        size = 1 + self._natural(model)
        return -size if negative else size
