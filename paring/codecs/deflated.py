"""Deflate streams in payloads: headers and planes, inflated no further than the container's shapes call for;
and how long a payload must be that may hold parts of no bytes.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence

import numpy as np

from paring.dtypes import Array, numel
from paring.errors import BadFileError

#: bytes that one byte of a deflate stream can stand for
MOST = 1032
#: entries that one byte of a payload can stand for, where a part of zeros takes none
_ENTRIES = 32_768


def written(data: bytes) -> bytes:
    """``data`` as the raw deflate stream that headers are."""
    stream = zlib.compressobj(9, zlib.DEFLATED, -15, 9)
    return stream.compress(data) + stream.flush()


def least_bytes(shapes: Sequence[tuple[int, ...]]) -> int:
    """How long such a payload must be for tensors of these shapes: no small file may stand for any memory."""
    return -(-sum(map(numel, shapes)) // _ENTRIES)


def planes(values: Array) -> bytes:
    """The bytes of ``values`` (n,), all first bytes first: alike by place, they deflate better so."""
    return values.view(np.uint8).reshape(-1, values.itemsize).T.tobytes()


def unplaned(raw: bytes, dtype: str) -> Array:
    """What :func:`planes` was given, (n,), of a numpy ``dtype``."""
    by_place = np.frombuffer(raw, np.uint8).reshape(np.dtype(dtype).itemsize, -1).T
    return np.ascontiguousarray(by_place).view(dtype).reshape(-1)


def plane(part: memoryview, deflated: bool, n: int, what: str, window: int = -15) -> Array:
    """A plane (n,), uint8, stored as it is or deflated. Raises BadFileError, naming ``what``, where it is not
    ``n`` bytes."""
    if deflated:
        return exactly(part, n, what, window)
    if len(part) != n:
        raise BadFileError(f"{what} does not fit the shape of its tensor")
    return np.frombuffer(part, np.uint8)


def exactly(deflated: memoryview, n: int, what: str, window: int = -15) -> Array:
    """A whole deflate stream (n,), uint8; no more than one byte more is ever inflated. Raises BadFileError,
    naming ``what``, where it is damaged or not ``n`` bytes."""
    stream = zlib.decompressobj(window)
    try:
        out = stream.decompress(deflated, min(n, MOST * len(deflated)) + 1)
    except zlib.error as error:
        raise BadFileError(f"{what} is damaged") from error
    if len(out) != n or not stream.eof or stream.unused_data:
        raise BadFileError(f"{what} does not fit the shape of its tensor")
    return np.frombuffer(out, np.uint8)


def reader(deflated: bytes, what: str) -> Callable[[int], bytes]:
    """Exactly the next so many bytes of a raw deflate stream at each call. ``what`` names it in errors. Calls
    raise BadFileError where there are not so many.
    """
    stream, rest = zlib.decompressobj(-15), deflated

    def take(size: int) -> bytes:
        nonlocal rest
        try:
            out = stream.decompress(rest, size) if size else b""
        except zlib.error as error:
            raise BadFileError(f"{what} has a damaged header") from error
        rest = stream.unconsumed_tail if size else rest
        if len(out) != size:
            raise BadFileError(f"{what} has too short a header")
        return out

    return take
