"""Exact order statistics of streamed values: a sample says where they lie, one pass finds them.

The sample gives a bracket for each rank, wide enough to hold it almost surely; the pass counts what lies
below and keeps what lies within, equal keys once with their number. Where a bracket misses, two passes over
histograms of 16 bits each find the rank instead. Whatever the sample, the result is exact, and all that is
merged are counts: it depends neither on threads nor on the order of chunks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from paring.kernels import order
from paring.kernels.order import HIGH, Counts, Keys

F32 = npt.NDArray[np.float32]

#: up to so many values a row a sample is not worth taking: they are counted in two passes
FEW = 1 << 22
#: up to so many they are all kept, in one
_FEWEST = 1 << 16
#: so many keys of a chunk are kept as they are; more are likely to be a few numbers many times
_PLAIN = 1 << 12
#: bracket: this many standard deviations of a sample's rank either way; neighbours in it resemble each other
_SIGMAS = 4.0
_ALIKE = 8.0
_ALL = (0, 0xFFFFFFFF)


@dataclass(frozen=True, slots=True)
class Wanted:
    """One order statistic: of row ``row``, the value at the 0-based ascending ``position``."""

    row: int
    position: int


@dataclass(slots=True)
class Tally:
    """What a pass has seen of one bracket: how many keys below, and those within, as they are or with their
    numbers; or counts by bins."""

    below: int = 0
    keys: list[Keys] = field(default_factory=list)
    many: list[tuple[Keys, Counts]] = field(default_factory=list)
    counts: Counts | None = None
    _held: int = 0  # in ``keys``
    _limit: int = 1 << 20

    def __post_init__(self) -> None:
        self._held = sum(map(len, self.keys))

    def add(self, other: Tally) -> None:
        """Join another part of the pass, which is used up."""
        self.below += other.below
        self.keys += other.keys
        self.many += other.many
        self._held += other._held
        self.compact()
        if self.counts is not None and other.counts is not None:
            self.counts += other.counts

    def compact(self) -> None:
        """Where many keys are the same, keep them with their numbers; else ask again at twice as many."""
        if self._held < self._limit:
            return
        plain = np.concatenate(self.keys)
        distinct, numbers = np.unique(plain, return_counts=True)
        if 2 * len(distinct) < len(plain):
            self.keys, self._held, self.many = [], 0, [_joined([*self.many, (distinct, numbers)])]
        else:
            self.keys, self._limit = [plain], 2 * len(plain)


#: one visit of all values: of each chunk ``(rows, k)`` make a list of tallies, and merge them all
Pass = Callable[[Callable[[F32], list[Tally]]], list[Tally]]


def find(
    wanted: Sequence[Wanted], n: int, sample: F32 | None, run: Pass, *, signed: bool
) -> npt.NDArray[np.float32]:
    """The values of ``wanted (m,)`` among ``n`` values a row, fp32 ``(m,)``, by ``run`` once or thrice.

    ``sample (rows, s)`` is taken from the values, None for none. ``signed`` orders numbers, else magnitudes.
    Raises ValueError for a position outside ``0 .. n - 1``.
    """
    for want in wanted:
        if not 0 <= want.position < n:
            raise ValueError(f"position {want.position} is outside 0..{n - 1}")
    if sample is None and n > _FEWEST:
        found = _by_histogram(wanted, run, signed)
        return np.array([order.value(key, signed) for key in found], np.float32)
    brackets: list[order.Bracket] = [(want.row, *_ALL) for want in wanted]
    for row, values in enumerate(() if sample is None else sample):  # one at a time: samples are large
        s = len(values)
        asked = {index: _bracket(s, want, n) for index, want in enumerate(wanted) if want.row == row}
        ends = sorted({place for bracket in asked.values() for place in bracket if 0 <= place < s})
        keys = np.partition(order.keys(values, signed), ends) if ends else np.empty(0, np.uint32)
        for index, (low, high) in asked.items():
            lowest, highest = _ALL
            brackets[index] = (
                row,
                int(keys[low]) if low >= 0 else lowest,
                int(keys[high]) if high < s else highest,
            )

    def within(chunk: F32) -> list[Tally]:
        return [
            Tally(below, [keys])
            if len(keys) <= _PLAIN
            else Tally(below, many=[np.unique(keys, return_counts=True)])
            for below, keys in order.brackets(chunk, signed, brackets)
        ]

    picked = [_pick(tally, want.position) for tally, want in zip(run(within), wanted, strict=True)]
    missed = [index for index, key in enumerate(picked) if key is None]
    if missed:
        again = _by_histogram([wanted[index] for index in missed], run, signed)
        for index, key in zip(missed, again, strict=True):
            picked[index] = key
    return np.array([order.value(key or 0, signed) for key in picked], np.float32)


def merge(first: list[Tally], second: list[Tally]) -> list[Tally]:
    """Join the tallies of two parts of a pass, bracket by bracket; ``first`` is used up."""
    for own, other in zip(first, second, strict=True):
        own.add(other)
    return first


def _bracket(s: int, want: Wanted, n: int) -> tuple[int, int]:
    """Between which places of a sorted sample of ``s`` the wanted rank is looked for; some lie outside it."""
    share = (want.position + 0.5) / n
    margin = _SIGMAS * math.sqrt(share * (1 - share) * _ALIKE / s) + 2 * _ALIKE / s
    return math.floor((share - margin) * s), math.ceil((share + margin) * s)


def _pick(tally: Tally, position: int) -> int | None:
    """The key at ``position``, None where it lies outside the bracket."""
    place = position - tally.below
    plain = np.concatenate([np.empty(0, np.uint32), *tally.keys])
    if not tally.many:
        return int(np.partition(plain, place)[place]) if 0 <= place < len(plain) else None
    keys, numbers = _joined([*tally.many, np.unique(plain, return_counts=True)])
    up_to = np.cumsum(numbers)
    if not 0 <= place < up_to[-1]:
        return None
    return int(keys[int(np.searchsorted(up_to, place, side="right"))])


def _joined(many: Sequence[tuple[Keys, Counts]]) -> tuple[Keys, Counts]:
    """Distinct keys in ascending order, and the numbers of all of them added up."""
    keys = np.concatenate([some for some, _ in many])
    numbers = np.concatenate([counts for _, counts in many])
    ascending = np.argsort(keys, kind="stable")
    keys, numbers = keys[ascending], numbers[ascending]
    first = np.flatnonzero(np.append(True, keys[1:] != keys[:-1]))[: len(keys)]
    return keys[first], np.add.reduceat(numbers, first) if len(first) else numbers


def _by_histogram(wanted: Sequence[Wanted], run: Pass, signed: bool) -> list[int]:
    """Two passes of 16 bits each."""
    lows = [0] * len(wanted)
    for shift in (16, 0):

        def counted(chunk: F32, shift: int = shift, lows: Sequence[int] = tuple(lows)) -> list[Tally]:
            pairs = (
                order.count(chunk[want.row], signed, low, shift)
                for want, low in zip(wanted, lows, strict=True)
            )
            return [Tally(below, counts=counts) for below, counts in pairs]

        for index, (tally, want) in enumerate(zip(run(counted), wanted, strict=True)):
            assert tally.counts is not None
            up_to = tally.below + np.cumsum(tally.counts)
            place = int(np.searchsorted(up_to, want.position, side="right"))
            assert place < HIGH, "the second visit saw other values than the first"
            lows[index] += place << shift
    return lows
