"""What a delta is given to coders as, and what they make of it: ``D' = B @ A + levels + signs``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from paring import codecs
from paring.codecs.ternary import Ternary
from paring.codecs.trellis import Levels

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]

#: what is put behind a tensor's name for each of its parts, in the order that they are added up
A, B, LEVELS, SIGNS = ":A", ":B", ":levels", ":signs"
#: a delta as it is, and the difference of bits that brings back the very tensor
DELTA, BITS = ":delta", ":bits"
SUFFIXES = (A, B, LEVELS, SIGNS, DELTA, BITS)


@dataclass(frozen=True, eq=False)
class Matrix:
    """A delta seen as (rows, columns); ``read(start, stop)`` gives some rows of it, fp32."""

    name: str
    rows: int
    columns: int
    read: Callable[[int, int], F32]

    def blocks(self, entries: int) -> list[tuple[int, int]]:
        """Rows from, to, of about so many entries each."""
        return list(spans(self.rows, self.columns, entries))

    def dense(self) -> F32:
        """All of it, (rows, columns), fp32."""
        out = np.empty((self.rows, self.columns), np.float32)
        for start, stop in self.blocks(1 << 20):
            out[start:stop] = self.read(start, stop)
        return out


def spans(rows: int, columns: int, entries: int) -> Iterator[tuple[int, int]]:
    """Rows from, to, of at most so many ``entries`` each, but at least a row."""
    step = max(1, entries // max(1, columns))
    for start in range(0, rows, step):
        yield start, min(start + step, rows)


@dataclass(frozen=True, eq=False)
class Parts:
    """A coded delta. Any part may be missing; without all of them it is zero."""

    matrix: Matrix
    a: Levels | None
    b: Levels | None
    levels: Levels | None
    signs: Ternary | None

    @property
    def rank(self) -> int:
        return self.a.shape[0] if self.a is not None else 0

    @property
    def items(self) -> list[tuple[str, Any]]:
        """The parts that there are, by the suffix of their names."""
        pairs = ((A, self.a), (B, self.b), (LEVELS, self.levels), (SIGNS, self.signs))
        return [(suffix, item) for suffix, item in pairs if item is not None]

    @cached_property
    def _factors(self) -> tuple[F64, F64] | None:
        if self.a is None or self.b is None:
            return None
        return codecs.of(self.a).values(self.a, "F32"), codecs.of(self.b).values(self.b, "F32")

    def block(self, start: int, stop: int) -> F64:
        """Rows (stop - start, columns) of what it decodes to, in fp64: as a reader adds up the parts."""
        rest = [_rows(item, start, stop) for item in (self.levels, self.signs) if item is not None]
        return summed((stop - start, self.matrix.columns), self._factors, slice(start, stop), rest)


def summed(
    shape: tuple[int, int], factors: tuple[F64, F64] | None, rows: slice, rest: list[npt.NDArray[Any]]
) -> F64:
    """The ``rows`` of ``B @ A``, ``factors`` being A (r, columns) and B (all rows, r), and the ``rest``,
    which are of ``shape`` already, added up in fp64.
    """
    out: F64 = np.zeros(shape)
    if factors is not None:
        out += factors[1][rows] @ factors[0]
    for part in rest:
        out += part
    return out


def _rows(item: Levels | Ternary, start: int, stop: int) -> F64:
    """Some rows of an item laid out by rows, as it decodes to fp32."""
    n = item.shape[1]
    if isinstance(item, Levels):
        some: Any = Levels(
            (stop - start, n), "rows", item.bits, item.classes[start:stop], item.scale[start:stop],
            item.k[start:stop],
        )  # fmt: skip
    else:
        mask, sign = (
            plane.reshape(item.shape[0], -1)[start:stop].reshape(-1) for plane in (item.mask, item.sign)
        )
        some = Ternary((stop - start, n), "rows", mask, sign, item.scale[start:stop])
    found: F64 = codecs.of(some).values(some, "F32")
    return found
