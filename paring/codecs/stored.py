"""The bytes codec: tensors kept bit for bit, their byte planes deflated where that helps.

The bytes of floating-point numbers are much alike by place (signs and exponents repeat, low mantissa bits are
noise), so an n-byte dtype is split in n planes, each deflated or left alone by itself.

A payload is: the length of the header (uint32, little endian); the header; the planes, one after the other.
The header is a raw deflate stream of a uint64, little endian, for each plane of each tensor in order: its
length in bytes as stored, with the top bit set when it is deflated (a zlib stream). A tensor has as many
planes as its dtype has bytes, the lowest first.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from paring.codecs import deflated
from paring.dtypes import Stored, from_bytes, itemsize, numel
from paring.errors import BadFileError

ID = "bytes"
VERSION = 1
ITEM = Stored
PACK = "carried"

_WHAT = "carried data"
_DEFLATED = 1 << 63
_ZLIB = 15  # the window of planes: zlib streams
_SAMPLE = 1 << 16
_WORTH = 0.97  # a plane is deflated when its sample shrinks to less than this


def most_bytes(item: Stored) -> int:
    """The bytes of ``item``."""
    return item.nbytes


def values(item: Stored, dtype: str) -> npt.NDArray[np.float64]:
    """The values of ``item``, in its shape, fp64, as they are: it is kept in ``dtype``."""
    assert item.dtype == dtype, "a stored tensor decodes to its own dtype"
    return item.f64()


def encode(tensors: Sequence[Stored]) -> bytes:
    """Code tensors into one payload; the same bytes for the same tensors."""
    words, planes = [], []
    for tensor in tensors:
        raw = np.frombuffer(tensor.tobytes(), np.uint8).reshape(-1, itemsize(tensor.dtype))
        for column in range(raw.shape[1]):
            plane = raw[:, column].tobytes()
            packed = zlib.compress(plane, 6) if _pays(plane) else plane
            shrunk = len(packed) < len(plane)
            planes.append(packed if shrunk else plane)
            words.append(len(planes[-1]) | (_DEFLATED if shrunk else 0))
    header = deflated.written(np.array(words, "<u8").tobytes())
    return b"".join((len(header).to_bytes(4, "little"), header, *planes))


def _pays(plane: bytes) -> bool:
    middle = max(0, len(plane) // 2 - _SAMPLE // 2)
    sample = plane[middle : middle + _SAMPLE]
    return bool(sample) and len(zlib.compress(sample, 6)) < _WORTH * len(sample)


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
    firsts = [0, *itertools.accumulate(map(itemsize, dtypes))]
    words = _words(data[4 : 4 + size], firsts[-1])
    ends = list(itertools.accumulate((word & (_DEFLATED - 1) for word in words), initial=4 + size))
    if ends[-1] != len(data):
        raise BadFileError(f"{_WHAT} is damaged: its parts do not add up")

    def read(index: int) -> Stored:
        n = numel(shapes[index])
        planes = [
            deflated.plane(data[ends[p] : ends[p + 1]], words[p] >= _DEFLATED, n, _WHAT, _ZLIB)
            for p in range(firsts[index], firsts[index + 1])
        ]
        raw = np.empty((n, len(planes)), np.uint8)
        for column, plane in enumerate(planes):
            raw[:, column] = plane
        return from_bytes(dtypes[index], shapes[index], raw.reshape(-1))

    return [read(index) for index in (range(len(shapes)) if select is None else select)]


def _words(header: memoryview, count: int) -> list[int]:
    """The ``count`` words of a header."""
    return [int(word) for word in deflated.exactly(header, 8 * count, _WHAT).view("<u8")]
