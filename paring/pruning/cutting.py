"""Where magnitudes or scores are cut so that exactly so many go, whatever is tied.

A *pool* is what shares one threshold: a matrix, or the whole model; its pieces come in order of (tensor's
name, flat index). One pass finds the key of the last entry that goes: for 16-bit floats by counts of all
32,768 magnitudes, else by :mod:`paring.ranks`. Of the entries that are equal to it the first go. Counts are
kept for some dozens of groups of pieces, so only one group is read again to tell where its ties end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import numpy.typing as npt

from paring import ranks
from paring.kernels import pruning as kernels
from paring.pruning.reading import F32, Piece, Reader, keyed
from paring.stream import in_order

_GROUPS = 32
#: beyond so many values, those within a sample's bracket are too many to keep
_MANY = 1 << 30
#: entries of a sample: this many pieces of 64 neighbours at most
_PIECES = 1 << 15
_PIECE = 64

Values = Callable[[Piece], F32]


@dataclass(frozen=True, slots=True)
class Cut:
    """Keys below ``key`` go, keys above it stay. Of equal ones all go before piece number ``piece`` of the
    pool, the first ``ties`` in it, none after it.

    A key is the magnitude's bits: of the 16-bit float where ``short``, else of the fp32.
    """

    key: int = 0
    piece: int = -1
    ties: int = 0
    short: bool = False

    def split(self, number: int, keys: Callable[[], npt.NDArray[np.integer]]) -> list[tuple[int, int]]:
        """For piece ``number`` of the pool: ``(stop, first)`` pairs, up to entry ``stop`` the least key that
        stays; -1 is the end. ``keys`` gives the piece's."""
        if number != self.piece:
            return [(-1, self.key + (number < self.piece))]
        place = int(np.flatnonzero(keys() == self.key)[self.ties - 1]) + 1
        return [(place, self.key + 1), (-1, self.key)]


@dataclass(frozen=True, slots=True)
class Pool:
    """What shares one threshold: ``prune`` of the ``n`` entries of its pieces go."""

    pieces: Sequence[Piece]
    n: int
    prune: int


def cuts(reader: Reader, pools: Sequence[Pool], device: str = "cpu") -> Iterator[Cut]:
    """The cut of each pool by magnitude. Raises BadValueError for NaN and infinity, with the tensor."""
    short = [_dtype(reader, pool) in kernels.INFINITE for pool in pools]
    pieces = [piece for pool, is_short in zip(pools, short, strict=True) if is_short for piece in pool.pieces]

    def count(piece: Piece) -> kernels.Counts:
        found = kernels.counts(reader.bits(piece).view(np.uint16), device)
        if found[kernels.INFINITE[reader.targets[piece.index].dtype] :].any():
            raise reader.broken(piece)
        return found

    counted = reader.visit(count, pieces)
    rest = [pool for pool, is_short in zip(pools, short, strict=True) if not is_short]
    ranked = cuts_of(reader, rest, reader.values)
    for pool, is_short in zip(pools, short, strict=True):
        yield _counted(reader, pool, counted) if is_short else next(ranked)


def cuts_of(reader: Reader, pools: Sequence[Pool], values: Values) -> Iterator[Cut]:
    """The cut of each pool by the fp32 ``values`` of its pieces, not negative or taken as magnitudes."""
    if len(pools) == 1:
        return iter([_ranked(reader, pools[0], values, reader.threads)])
    return in_order(lambda pool: _ranked(reader, pool, values, 1), pools, reader.threads)


def _dtype(reader: Reader, pool: Pool) -> str | None:
    """The dtype of all pieces, None where they differ."""
    found = {reader.targets[piece.index].dtype for piece in pool.pieces}
    return next(iter(found)) if len(found) == 1 else None


def _group(number: int, pool: Pool) -> int:
    return number * min(_GROUPS, len(pool.pieces)) // len(pool.pieces)


def _counted(reader: Reader, pool: Pool, counted: Iterator[kernels.Counts]) -> Cut:
    """From the counts of a pool's pieces, which are the next of ``counted``."""
    groups = np.zeros((min(_GROUPS, len(pool.pieces)), kernels.BINS), np.int64)
    for number, found in enumerate(islice(counted, len(pool.pieces))):
        groups[_group(number, pool)] += found
    if not pool.prune:
        return Cut(short=True)
    up_to = np.cumsum(groups.sum(axis=0))
    key = int(np.searchsorted(up_to, pool.prune))
    below = int(up_to[key - 1]) if key else 0

    def equal(piece: Piece) -> int:
        return int(np.count_nonzero(short_keys(reader, piece) == key))

    return _placed(pool, key, pool.prune - below, groups[:, key].tolist(), equal, short=True)


def short_keys(reader: Reader, piece: Piece) -> npt.NDArray[np.uint16]:
    """The magnitudes ``(n,)`` of a piece of 16-bit floats, as bits."""
    found: npt.NDArray[np.uint16] = reader.bits(piece).view(np.uint16) & np.uint16(0x7FFF)
    return found


def _placed(
    pool: Pool, key: int, ties: int, groups: Sequence[int], equal: Callable[[Piece], int],
    *, short: bool,
) -> Cut:  # fmt: skip
    """The cut at ``key`` of which ``ties`` go; ``groups`` are the numbers of equal keys by group."""
    for group, times in enumerate(groups):
        if ties > times or not times:
            ties -= times
            continue
        for number, piece in enumerate(pool.pieces):
            if _group(number, pool) == group:
                here = equal(piece)
                if ties <= here:
                    return Cut(key, number, ties, short)
                ties -= here
    raise AssertionError("there are fewer equal keys than were counted")


def _ranked(reader: Reader, pool: Pool, values: Values, threads: int) -> Cut:
    if not pool.prune:
        for _ in reader.visit(values, pool.pieces, threads):
            pass  # NaN is refused, whatever is asked for
        return Cut()
    groups: list[ranks.Tally] = []

    def run(tally: Callable[[F32], list[ranks.Tally]]) -> list[ranks.Tally]:
        groups.clear()
        found = reader.visit(lambda piece: tally(values(piece)[None]), pool.pieces, threads)
        for number, some in enumerate(found):
            if _group(number, pool) == len(groups):
                groups.append(some[0])
            else:
                ranks.merge([groups[-1]], some)
        total = ranks.Tally()
        for group in groups:
            copy = ranks.Tally(group.below, list(group.keys), list(group.many))
            copy.counts = None if group.counts is None else group.counts.copy()
            if total.counts is None:
                total.counts, copy.counts = copy.counts, None
            ranks.merge([total], [copy])
        return [total]

    sample = _sample(reader, pool) if values == reader.values else None
    wanted = [ranks.Wanted(0, pool.prune - 1)]
    value = ranks.find(wanted, pool.n, sample, run, signed=False)
    key = int(value.view(np.uint32)[0])
    told = [_told(group, key) for group in groups]
    ties = pool.prune - sum(below for below, _ in told)

    def equal(piece: Piece) -> int:
        return int(np.count_nonzero(keyed(values(piece)) == key))

    return _placed(pool, key, ties, [times for _, times in told], equal, short=False)


def _told(tally: ranks.Tally, key: int) -> tuple[int, int]:
    """How many of what a tally has seen are below ``key``, and how many equal it."""
    if tally.counts is not None:
        place = key & 0xFFFF  # the second histogram's bins are single keys
        return tally.below + int(tally.counts[:place].sum()), int(tally.counts[place])
    below, equal = tally.below, 0
    for keys in tally.keys:
        below += int(np.count_nonzero(keys < key))
        equal += int(np.count_nonzero(keys == key))
    for keys, times in tally.many:
        below += int(times[keys < key].sum())
        equal += int(times[keys == key].sum())
    return below, equal


def _sample(reader: Reader, pool: Pool) -> F32 | None:
    """Some neighbours of each stretch of a pool, ``(1, s)``; None where it is too small or too large."""
    if not ranks.FEW < pool.n <= _MANY:
        return None
    step = max(_PIECE, pool.n // _PIECES)
    out, place = [], 0
    for piece in pool.pieces:
        for start in range(piece.start, piece.stop, step):
            begin = start + place * 40_503 % max(1, step - _PIECE)
            stop = min(begin + _PIECE, piece.stop)
            place += 1
            if begin < stop:
                out.append(reader.values(Piece(piece.index, piece.number, begin, stop)))
    return np.concatenate(out)[None]
