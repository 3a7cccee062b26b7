"""The bytes codec, version 2: tensors kept bit for bit, byte planes entropy-coded, no plane kept twice.

The bytes of floating-point numbers are much alike by place (exponents repeat, low mantissa bits are noise),
so an n-byte dtype is split in n planes, each coded by itself. The sign is moved out of the way first: the
upper 16 bits of a floating-point number are rotated left by one, so that the highest plane holds the
exponent alone (of fp16 also three bits of the mantissa). A plane is deflated with Huffman codes alone,
which suits numbers and is quick, or with repeats where those pay, or left as it is. A plane that equals an
earlier one of the payload points to it: tensors that are there twice take no room, nor do parts of them.

A payload is: the length of the header (uint32, little endian); the header; the planes, one after the other.
The header is a raw deflate stream of a uint64, little endian, for each plane of each tensor in order, the
lowest plane first. With bit 62 set, the low 62 bits are the number of an earlier plane that holds the same
bytes; else they are its length in bytes as stored, and bit 63 says that it is a raw deflate stream. A
payload of n bytes stands for at most 65,536 n: repeats end before that, so that a small file cannot take
any amount of memory.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Hashable, Sequence
from hashlib import blake2b

import numpy as np

from paring.codecs import deflated
from paring.codecs.stored import ITEM, PACK, most_bytes, values
from paring.dtypes import FLOATS, Array, Stored, from_bytes, itemsize, numel
from paring.errors import BadFileError

ID = "bytes"
VERSION = 2

__all__ = ["ID", "ITEM", "PACK", "VERSION", "decode", "encode", "key", "most_bytes", "values"]

_WHAT = "stored data"
_DEFLATED, _REPEATS = 1 << 63, 1 << 62
_SAMPLE = 1 << 16
_MOST = 65_536  # bytes that one byte of a payload may stand for
_WORTH = 0.98  # a plane is coded when its sample shrinks to less than this


def key(item: Stored) -> Hashable:
    """The same for tensors that are alike: dtype, shape and all bytes."""
    return item.dtype, item.shape, blake2b(np.ascontiguousarray(item.data).view(np.uint8).data).digest()


def encode(tensors: Sequence[Stored]) -> bytes:
    """Code tensors into one payload; the same bytes for the same tensors."""
    words: list[int] = []
    parts = []
    size = stands_for = 0
    seen: dict[bytes, int] = {}
    for tensor in tensors:
        for column in _turned(tensor).T:
            plane = column.tobytes()
            first = seen.setdefault(blake2b(plane).digest(), len(words))
            stands_for += len(plane)
            if first < len(words) and stands_for <= _MOST * size:
                words.append(_REPEATS | first)
                continue
            packed = _shortest(plane)
            parts.append(packed)
            size += len(packed)
            words.append(len(packed) | (_DEFLATED if packed is not plane else 0))
    header = deflated.written(np.array(words, "<u8").tobytes())
    return b"".join((len(header).to_bytes(4, "little"), header, *parts))


def _turned(tensor: Stored) -> Array:
    """The bytes of a tensor, uint8 ``(n, itemsize)``, with the sign below the exponent."""
    width = itemsize(tensor.dtype)
    raw = np.frombuffer(tensor.tobytes(), np.uint8).reshape(-1, width)
    if tensor.dtype not in FLOATS:
        return raw
    halves = raw.view("<u2").copy()
    halves[:, -1] = halves[:, -1] << 1 | halves[:, -1] >> 15
    return halves.view(np.uint8)


def _shortest(plane: bytes) -> bytes:
    """A plane deflated in the better of two ways, or itself where neither makes it shorter."""
    middle = max(0, len(plane) // 2 - _SAMPLE // 2)
    sample = plane[middle : middle + _SAMPLE]
    huffman = len(_deflated(sample, zlib.Z_HUFFMAN_ONLY))
    repeats = len(_deflated(sample, zlib.Z_DEFAULT_STRATEGY))
    if min(huffman, repeats) >= _WORTH * len(sample):
        return plane
    packed = _deflated(plane, zlib.Z_HUFFMAN_ONLY if huffman <= repeats else zlib.Z_DEFAULT_STRATEGY)
    return packed if len(packed) < len(plane) else plane


def _deflated(data: bytes, strategy: int) -> bytes:
    stream = zlib.compressobj(6, zlib.DEFLATED, -15, 9, strategy)
    return stream.compress(data) + stream.flush()


def decode(
    payload: bytes | memoryview,
    shapes: Sequence[tuple[int, ...]],
    dtypes: Sequence[str],
    select: Sequence[int] | None = None,
    threads: int = 1,
) -> list[Stored]:
    """The tensors ``select`` (all), in that order. Raises BadFileError on damage; ``threads`` is not used."""
    data = memoryview(payload)
    size = int.from_bytes(data[:4], "little")
    if len(data) < 4 + size:
        raise BadFileError(f"{_WHAT} is cut short")
    widths = list(map(itemsize, dtypes))
    if sum(numel(shape) * width for shape, width in zip(shapes, widths, strict=True)) > _MOST * len(data):
        raise BadFileError(f"{_WHAT} is too short for the shapes of its tensors")
    firsts = [0, *itertools.accumulate(widths)]
    planes = _planes(data, size, firsts[-1])

    def read(index: int) -> Stored:
        shape, dtype = shapes[index], dtypes[index]
        n = numel(shape)
        own = [
            deflated.plane(part, packed, n, _WHAT)
            for part, packed in planes[firsts[index] : firsts[index + 1]]
        ]
        raw = np.empty((n, len(own)), np.uint8)
        for column, plane in enumerate(own):
            raw[:, column] = plane
        if dtype in FLOATS:
            halves = raw.view("<u2")
            halves[:, -1] = halves[:, -1] >> 1 | halves[:, -1] << 15
        return from_bytes(dtype, shape, raw.reshape(-1))

    return [read(index) for index in (range(len(shapes)) if select is None else select)]


def _planes(data: memoryview, size: int, count: int) -> list[tuple[memoryview, bool]]:
    """The stored bytes of each of ``count`` planes, and whether they are deflated."""
    out: list[tuple[memoryview, bool]] = []
    at = 4 + size
    for word in deflated.exactly(data[4:at], 8 * count, _WHAT).view("<u8").tolist():
        if word & _REPEATS:
            first = word & (_REPEATS - 1)
            if first >= len(out):
                raise BadFileError(f"{_WHAT} is damaged: a part repeats a later one")
            out.append(out[first])
            continue
        end = at + (word & (_REPEATS - 1))
        out.append((data[at:end], word >= _DEFLATED))
        at = end
    if at != len(data):
        raise BadFileError(f"{_WHAT} is damaged: its parts do not add up")
    return out
