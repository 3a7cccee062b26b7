"""What is bit for bit the same, whatever it is called: tensors, rank vectors, shards.

Two shards are the same up to a *move* where one is the other with its signs flipped or times a power of
two, which loses nothing. Shards of one length are given 64-bit numbers of what no move changes; equal
numbers are taken for equal shards, and a tensor is rebuilt and compared before that is believed.

Whether a tensor has shards in common with anything shows at the shortest lengths: a divisor of the true
length of shards finds the same sharing, a multiple finds none. So tensors are linked at those divisors of
their rank vectors' length that no other divides, and what is linked is then tried at every divisor.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from paring.codecs.shards import cut
from paring.dtypes import FLOATS, Array, Stored, itemsize
from paring.kernels.ternary.tensor import Layout, segments

U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]
_KEY = np.uint64(0x9E3779B97F4A7C15)
_CHUNK = 1 << 20  # elements hashed at once


@dataclass(frozen=True, slots=True, eq=False)
class Lines:
    """A tensor to be cut. ``number`` is its place in the file where it is there already, else None."""

    tensor: Stored
    layout: Layout
    number: int | None = None

    @property
    def length(self) -> int:
        return segments(self.tensor.shape, self.layout)[1]


@dataclass(frozen=True, slots=True, eq=False)
class Marks:
    """What shards are up to moves: ``hashes`` (n,); their signs (n,), 0 or 1, and exponents (n,); and whether
    any entry is not zero (n,).
    """

    hashes: U64
    signs: npt.NDArray[np.int16]
    exponents: npt.NDArray[np.int16]
    full: npt.NDArray[np.bool_]


def content(tensor: Stored) -> bytes:
    """A digest of dtype and bytes: not of the shape, which the manifest tells."""
    return hashlib.blake2b(tensor.dtype.encode() + b"\0" + tensor.tobytes(), digest_size=20).digest()


def marks(lines: Lines, length: int) -> Marks:
    """The marks of the shards of ``length`` entries."""
    shards = cut(lines.tensor.data, lines.layout, length)
    step = max(1, _CHUNK // length)
    parts = [_marks(Stored(lines.tensor.dtype, shards[at : at + step])) for at in range(0, len(shards), step)]
    columns = zip(*parts, strict=True)
    return Marks(*(np.concatenate(column) for column in columns))


def _marks(shards: Stored) -> tuple[Array, Array, Array, Array]:
    n = len(shards.data)
    signs, exponents = np.zeros(n, np.int16), np.zeros(n, np.int16)
    if shards.dtype in FLOATS:
        wide = shards.f64()
        used = wide != 0
        full = used.any(axis=1)
        first = np.take_along_axis(wide, used.argmax(axis=1)[:, None], axis=1)[:, 0]
        top = np.abs(wide).max(axis=1)
        signs = (first < 0).astype(np.int16)
        exponents = np.frexp(top)[1].astype(np.int16)
        with np.errstate(under="ignore"):
            wide = np.ldexp(wide, -exponents[:, None].astype(np.int32))
        bits = np.ascontiguousarray(wide).view(np.uint64)
        bits = bits ^ (signs.astype(np.uint64)[:, None] << np.uint64(63))
    else:
        size = itemsize(shards.dtype)
        raw = np.ascontiguousarray(shards.data).view(np.uint8).reshape(n, -1, size)
        bits = np.zeros(raw.shape[:2], np.uint64)
        for byte in range(size):
            bits |= raw[:, :, byte].astype(np.uint64) << np.uint64(8 * byte % 64)
        full = bits.any(axis=1)
    keys = _mixed(np.arange(1, bits.shape[1] + 1, dtype=np.uint64) * _KEY) | np.uint64(1)
    return (_mixed(bits) * keys).sum(axis=1, dtype=np.uint64), signs, exponents, full


def _mixed(bits: U64) -> U64:
    """Every bit spread over all of the word; wraps."""
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))


def divisors(n: int, shortest: int) -> list[int]:
    """The divisors of ``n`` from ``shortest`` on, from long to short."""
    small = [d for d in range(1, int(n**0.5) + 1) if n % d == 0]
    return sorted({d for s in small for d in (s, n // s) if d >= shortest}, reverse=True)


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """Tensors that share shards of one length: ``members`` are places in what was searched.

    ``owned`` (members) of them are in the file already; ``pool`` is what must be added, (shards, length):
    ``index`` and ``moves`` of each other member count the shards of the owned ones first, then those of it.
    """

    length: int
    owned: tuple[int, ...]
    members: tuple[int, ...]
    pool: Array
    index: tuple[I64, ...]
    moves: tuple[npt.NDArray[np.int16] | None, ...]


def shortest_of(n: int, shortest: int) -> list[int]:
    """The divisors of ``n`` from ``shortest`` on that are no multiple of another one: each of the others is a
    multiple of one of these.
    """
    out: list[int] = []
    for d in reversed(divisors(n, shortest)):
        if all(d % other for other in out):
            out.append(d)
    return out


def linked(lines: Sequence[Lines], shortest: int) -> list[list[int]]:
    """Groups of tensors that have shards in common, one with itself among them, at one of the shortest
    divisors of their vectors' length. All are of one dtype. A group holds a tensor that is not in the file.
    """
    root = list(range(len(lines)))
    touched: set[int] = set()

    def find(place: int) -> int:
        while root[place] != place:
            root[place] = place = root[root[place]]
        return place

    for length in sorted({line.length for line in lines if line.number is None}):
        for fine in shortest_of(length, shortest):
            own = [
                i
                for i, line in enumerate(lines)
                if line.length == length or (line.number is not None and line.length % fine == 0)
            ]
            for a, b in _links([lines[i] for i in own], fine):
                touched |= {own[a], own[b]}
                root[find(own[a])] = find(own[b])
    groups: dict[int, list[int]] = {}
    for place in sorted(touched):
        groups.setdefault(find(place), []).append(place)
    return [group for group in groups.values() if any(lines[i].number is None for i in group)]


def _links(lines: Sequence[Lines], length: int) -> list[list[int]]:
    """Pairs of ``lines`` that follow each other among those that have a shard in common; equal for one that
    has a shard twice.
    """
    parts = [marks(line, length) for line in lines]
    hashes = np.concatenate([part.hashes[part.full] for part in parts])
    owner = np.repeat(np.arange(len(lines)), [int(part.full.sum()) for part in parts])
    order = np.argsort(hashes, kind="stable")
    hashes, owner = hashes[order], owner[order]
    same = np.flatnonzero(hashes[1:] == hashes[:-1])
    if not len(same):
        return []
    pairs: list[list[int]] = np.unique(np.stack([owner[same], owner[same + 1]], axis=1), axis=0).tolist()
    return pairs


def shared(lines: Sequence[Lines], members: Sequence[int], shortest: int) -> Found | None:
    """The length of shards at which the tensors ``members`` take fewest bytes, with pool and indices; None
    where every length takes as many as the tensors themselves.
    """
    new = [i for i in members if lines[i].number is None]
    old = [i for i in members if lines[i].number is not None]
    lengths = divisors(lines[new[0]].length, shortest)
    plain = sum(lines[i].tensor.nbytes for i in new)
    best, least = None, float(plain)
    for length in lengths:
        fresh = [marks(lines[i], length) for i in new if lines[i].length % length == 0]
        taken = [marks(lines[i], length) for i in old if lines[i].length % length == 0]
        have = _distinct(taken)
        unique = len(np.setdiff1d(_distinct(fresh), have, assume_unique=True))
        count = sum(len(m.hashes) for m in fresh)
        width = 1 if len(have) + unique <= 1 << 8 else 2 if len(have) + unique <= 1 << 16 else 4
        nbytes = unique * length * itemsize(lines[new[0]].tensor.dtype) + count * width
        if nbytes < least:
            best, least = length, nbytes
    return None if best is None else _found(lines, members, best)


def _distinct(some: Iterable[Marks]) -> U64:
    return np.unique(np.concatenate([np.zeros(0, np.uint64), *(m.hashes[m.full] for m in some)]))


def _found(lines: Sequence[Lines], members: Sequence[int], length: int) -> Found | None:
    """The pool of the shards of ``length`` entries of ``members``, the first of every kind."""
    cuttable = [i for i in members if lines[i].length % length == 0]
    found = {i: marks(lines[i], length) for i in cuttable}
    full = {i: m.hashes[m.full] for i, m in found.items()}
    hashes, counts = np.unique(np.concatenate([np.zeros(0, np.uint64), *full.values()]), return_counts=True)
    sharing = [i for i in cuttable if np.isin(full[i], hashes[counts > 1]).any()]
    owned = [i for i in sharing if lines[i].number is not None]
    new = [i for i in sharing if lines[i].number is None]
    if not new:
        return None
    seen: dict[int, int] = {}
    signs, exponents, pool = [], [], []
    places = 0
    for i in owned:
        for at, h in enumerate(found[i].hashes.tolist()):
            seen.setdefault(h, places + at)
        signs += found[i].signs.tolist()
        exponents += found[i].exponents.tolist()
        places += len(found[i].hashes)
    indices, moves = [], []
    for i in new:
        shards = cut(lines[i].tensor.data, lines[i].layout, length)
        own = found[i]
        index = np.empty(len(shards), np.int64)
        for at, h in enumerate(own.hashes.tolist()):
            place = seen.get(h)
            if place is None:
                place = seen[h] = len(signs)
                signs.append(int(own.signs[at]))
                exponents.append(int(own.exponents[at]))
                pool.append(shards[at])
            index[at] = place
        flip = own.signs ^ np.array(signs, np.int16)[index]
        power = (own.exponents - np.array(exponents, np.int16)[index]) * own.full
        moved = (power << 1) | flip
        indices.append(index)
        moves.append(moved.astype(np.int16) if moved.any() else None)
    empty = np.zeros((0, length), lines[new[0]].tensor.data.dtype)
    whole = np.stack(pool) if pool else empty
    return Found(length, tuple(owned), tuple(new), whole, tuple(indices), tuple(moves))
