"""The shards codec: tensors gathered bit for bit from shards of other tensors of the file.

A *pool* is a list of tensors that stand earlier in the file, cut in shards of one length: each in segments
(its rows, its columns or the whole of it), every segment in equal shards, all in order. A tensor is cut the
same way, and is told by the numbers of its shards in the pool. Where it says so, a shard is also moved: its
sign bits are flipped, or its values multiplied by a power of two, which loses nothing.

A payload is one raw deflate stream of, little endian: the number of pools (uint32); for each pool the
length of its shards, the number of its tensors (uint32 each), and of each tensor its number in the file
(uint32) and its layout (uint8); for each tensor of the payload its pool (uint32), its layout (uint8), and a
uint8 of which bits 0 and 1 are log2 of the bytes of an index and bit 2 says that shards are moved; then,
tensor by tensor, the indices, all lowest bytes first, and where shards are moved an int16 each: bit 0
flips, the rest is the exponent.

Zeros follow so that the payload has a byte for every 32,768 entries of its tensors.

Shapes, dtypes and checksums are the container's. A damaged payload raises BadFileError or yields wrong
values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from paring.codecs import deflated
from paring.dtypes import FLOATS, STORAGE, Array, Stored, itemsize, numel
from paring.errors import BadFileError
from paring.kernels.ternary.tensor import LAYOUTS, Layout, laid, rows_of, segments

ID = "shards"
VERSION = 1
PACK = "shards"

__all__ = ["ID", "ITEM", "PACK", "VERSION", "Gather", "Pool", "cut", "decode", "encode", "layouts_of",
           "most_bytes", "moved", "references", "values"]  # fmt: skip

_WHAT = "shards data"
_MOST_POOLS = 1 << 20
Index = npt.NDArray[np.int64]
Moves = npt.NDArray[np.int16]


@dataclass(frozen=True, slots=True)
class Pool:
    """Tensors by their numbers in the file, each with its layout, in shards of ``length`` elements."""

    length: int
    tensors: tuple[tuple[int, Layout], ...]


@dataclass(frozen=True, slots=True, eq=False)
class Gather:
    """A ``tensor`` made of the shards ``index`` (shards,) of ``pool``; ``moves`` (shards,), int16, says what
    is done to each (bit 0: flip signs; the rest: times two to that power), None for nothing.
    """

    tensor: Stored
    layout: Layout
    pool: Pool
    index: Index
    moves: Moves | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return self.tensor.shape


ITEM = Gather


def most_bytes(item: Gather) -> int:
    """More bytes than ``item`` takes beside its pool."""
    return 64 + 6 * len(item.index)


def values(item: Gather, dtype: str) -> npt.NDArray[np.float64]:
    """The values of ``item``, in its shape, fp64, as they are."""
    assert item.tensor.dtype == dtype, "a gathered tensor decodes to its own dtype"
    return item.tensor.f64()


def cut(data: Array, layout: Layout, length: int) -> Array:
    """The shards of an array, ``(shards, length)``, in order."""
    return np.ascontiguousarray(rows_of(data, layout)).reshape(-1, length)


def moved(shards: Stored, moves: Moves) -> Stored:
    """``shards`` (shards, length) with the powers and flips ``moves`` (shards,) done to them.

    Raises BadFileError where a value leaves the range of the dtype.
    """
    power, flip = (moves >> 1).astype(np.int32)[:, None], (moves & 1).astype(bool)
    wide = shards.f32() if shards.dtype == "BF16" else shards.data
    with np.errstate(over="ignore", under="ignore"):
        scaled = np.ldexp(wide, power)
    if not np.isfinite(scaled).all():
        raise BadFileError(f"{_WHAT} is damaged: a shard leaves the range of its dtype")
    bits = np.dtype(f"u{itemsize(shards.dtype)}")
    if shards.dtype == "BF16":
        raw = (np.ascontiguousarray(scaled, np.float32).view(np.uint32) >> np.uint32(16)).astype(bits)
    else:
        raw = np.ascontiguousarray(scaled, shards.data.dtype).view(bits)
    raw = np.where(flip[:, None], raw ^ bits.type(1 << (8 * bits.itemsize - 1)), raw)
    return Stored(shards.dtype, raw.view(STORAGE[shards.dtype]))


def encode(items: Sequence[Gather]) -> bytes:
    """Code tensors into one payload; the same bytes for the same tensors."""
    pools = {pool: place for place, pool in enumerate(dict.fromkeys(item.pool for item in items))}
    parts = [np.array([len(pools)], "<u4").tobytes()]
    for pool in pools:
        parts.append(np.array([pool.length, len(pool.tensors)], "<u4").tobytes())
        for number, layout in pool.tensors:
            parts.append(number.to_bytes(4, "little") + bytes([LAYOUTS.index(layout)]))
    widths = [_width(item) for item in items]
    for item, width in zip(items, widths, strict=True):
        flags = width | (4 if item.moves is not None else 0)
        parts.append(pools[item.pool].to_bytes(4, "little") + bytes([LAYOUTS.index(item.layout), flags]))
    for item, width in zip(items, widths, strict=True):
        parts.append(deflated.planes(item.index.astype(f"<u{1 << width}")))
        if item.moves is not None:
            parts.append(deflated.planes(item.moves.astype("<i2")))
    return deflated.written(b"".join(parts)).ljust(
        deflated.least_bytes([item.shape for item in items]), b"\0"
    )


def _width(item: Gather) -> int:
    most = int(item.index.max(initial=0))
    return 0 if most < 1 << 8 else 1 if most < 1 << 16 else 2


@dataclass(frozen=True, slots=True)
class _Read:
    """A payload whose head has been read; ``take`` gives what follows it, in order."""

    pools: tuple[Pool, ...]
    tensors: tuple[tuple[int, Layout, int], ...]  #: pool, layout, flags
    take: Callable[[int], bytes]


def _layout(code: int) -> Layout:
    if code >= len(LAYOUTS):
        raise BadFileError(f"{_WHAT} has an unknown layout: it is damaged, or of a newer version")
    return LAYOUTS[code]


def _head(payload: bytes | memoryview, shapes: Sequence[tuple[int, ...]]) -> _Read:
    """Read and check all but the indices, taking no more memory than the payload can stand for."""
    if len(payload) < deflated.least_bytes(shapes):
        raise BadFileError(f"{_WHAT} is too short for the shapes of its tensors")
    take = deflated.reader(bytes(payload), _WHAT)
    count = int.from_bytes(take(4), "little")
    if count > min(_MOST_POOLS, max(1, len(shapes))):
        raise BadFileError(f"{_WHAT} is damaged: it has more pools than tensors")
    pools = []
    for _ in range(count):
        length, tensors = (int(word) for word in np.frombuffer(take(8), "<u4"))
        if not length or 5 * tensors > deflated.MOST * len(payload):
            raise BadFileError(f"{_WHAT} is damaged: it has an unsound pool")
        raw = take(5 * tensors)
        entries = [raw[at : at + 5] for at in range(0, len(raw), 5)]
        told = tuple((int.from_bytes(entry[:4], "little"), _layout(entry[4])) for entry in entries)
        pools.append(Pool(length, told))
    rows = take(6 * len(shapes))
    found = []
    for at, shape in enumerate(shapes):
        row = rows[6 * at : 6 * at + 6]
        place, layout, flags = int.from_bytes(row[:4], "little"), _layout(row[4]), row[5]
        if place >= len(pools) or flags > 7 or flags & 3 > 2 or (layout != "whole" and not shape):
            raise BadFileError(f"{_WHAT} is damaged, or of a newer version")
        if segments(shape, layout)[1] % pools[place].length:
            raise BadFileError(f"{_WHAT} does not fit the shapes of its tensors")
        found.append((place, layout, flags))
    return _Read(tuple(pools), tuple(found), take)


def references(payload: bytes | memoryview, shapes: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """Of each tensor of a payload the numbers of those that it is gathered from."""
    read = _head(payload, shapes)
    numbers = [tuple(number for number, _ in pool.tensors) for pool in read.pools]
    return [numbers[place] for place, _, _ in read.tensors]


def layouts_of(
    payload: bytes | memoryview, shapes: Sequence[tuple[int, ...]]
) -> list[tuple[Pool, Layout, Index]]:
    """Of each tensor of a payload its pool, layout and the indices (shards,), int64, of its shards. Raises
    BadFileError for a payload that is damaged."""
    read = _head(payload, shapes)
    out = []
    for (place, layout, flags), shape in zip(read.tensors, shapes, strict=True):
        index, _ = _indices(read, place, flags, shape)
        out.append((read.pools[place], layout, index))
    return out


def _indices(read: _Read, place: int, flags: int, shape: tuple[int, ...]) -> tuple[Index, Moves | None]:
    count = numel(shape) // read.pools[place].length
    width = 1 << (flags & 3)
    index = deflated.unplaned(read.take(count * width), f"<u{width}").astype(np.int64)
    moves = deflated.unplaned(read.take(2 * count), "<i2") if flags & 4 else None
    return index, moves


def decode(
    payload: bytes | memoryview,
    shapes: Sequence[tuple[int, ...]],
    dtypes: Sequence[str],
    select: Sequence[int] | None = None,
    threads: int = 1,
    *,
    known: Mapping[int, Stored],
) -> list[Stored]:
    """The tensors ``select`` (all), in that order, from the tensors ``known`` that :func:`references` names.

    Raises BadFileError on damage: indices beyond a pool, tensors of another dtype or that cannot be cut.
    """
    wanted = list(range(len(shapes)) if select is None else select)
    read = _head(payload, shapes)
    cuts: dict[tuple[int, str], Array] = {}
    done: dict[int, Stored] = {}
    last = max(wanted, default=-1)
    for i, (place, layout, flags) in enumerate(read.tensors[: last + 1]):
        index, moves = _indices(read, place, flags, shapes[i])
        if i not in wanted:
            continue
        if (place, dtypes[i]) not in cuts:
            cuts[place, dtypes[i]] = _pool(read.pools[place], dtypes[i], known)
        pool = cuts[place, dtypes[i]]
        if (index >= len(pool)).any():
            raise BadFileError(f"{_WHAT} is damaged: a shard lies beyond its pool")
        taken = Stored(dtypes[i], pool[index])
        if moves is not None:
            if dtypes[i] not in FLOATS:
                raise BadFileError(f"{_WHAT} is damaged: it scales {dtypes[i]}")
            taken = moved(taken, moves)
        rows = taken.data.reshape(segments(shapes[i], layout))
        done[i] = Stored(dtypes[i], laid(rows, layout, shapes[i]))
    return [done[i] for i in wanted]


def _pool(pool: Pool, dtype: str, known: Mapping[int, Stored]) -> Array:
    parts = [np.zeros((0, pool.length), STORAGE[dtype])]
    for number, layout in pool.tensors:
        tensor = known[number]
        if tensor.dtype != dtype or (layout != "whole" and not tensor.shape):
            raise BadFileError(f"{_WHAT} is damaged: its pool does not fit its tensors")
        if segments(tensor.shape, layout)[1] % pool.length:
            raise BadFileError(f"{_WHAT} is damaged: its pool cannot be cut as it says")
        parts.append(cut(tensor.data, layout, pool.length))
    return parts[1] if len(parts) == 2 else np.concatenate(parts)
