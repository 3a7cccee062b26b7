"""The bytes codec: tensors kept bit for bit, their byte planes deflated where that helps.

The bytes of floating-point numbers are much alike by place (signs and exponents repeat, low mantissa bits are
noise), so an n-byte dtype is split in n planes, each deflated or left alone by itself.

A payload is, little endian: for each plane of each tensor in order its length (uint64) with the top bit set when
it is deflated; then the planes, one after the other. A tensor has as many planes as its dtype has bytes.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np

from paring.dtypes import Stored, from_bytes, itemsize, numel
from paring.errors import BadFileError

ID = "bytes"
VERSION = 1

_DEFLATED = 1 << 63
_SAMPLE = 1 << 16
_WORTH = 0.97  # a plane is deflated when its sample shrinks to less than this


def encode(tensors: Sequence[Stored]) -> bytes:
    """Code tensors into one payload; the same bytes for the same tensors."""
    lengths, planes = [], []
    for tensor in tensors:
        raw = np.frombuffer(tensor.tobytes(), np.uint8).reshape(-1, itemsize(tensor.dtype))
        for column in range(raw.shape[1]):
            plane = raw[:, column].tobytes()
            packed = zlib.compress(plane, 6) if _pays(plane) else plane
            shrunk = len(packed) < len(plane)
            planes.append(packed if shrunk else plane)
            lengths.append(len(planes[-1]) | (_DEFLATED if shrunk else 0))
    return np.array(lengths, "<u8").tobytes() + b"".join(planes)


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
    widths = [itemsize(dtype) for dtype in dtypes]
    count = sum(widths)
    data = memoryview(payload)
    if len(data) < 8 * count:
        raise BadFileError("carried data is cut short")
    coded = np.frombuffer(data[: 8 * count], "<u8")
    sizes = [int(word) & (_DEFLATED - 1) for word in coded]
    if 8 * count + sum(sizes) != len(data):
        raise BadFileError("carried data is damaged: its parts do not add up")
    starts = np.cumsum([8 * count, *sizes]).tolist()
    firsts = np.cumsum([0, *widths]).tolist()
    out = []
    for index in range(len(shapes)) if select is None else select:
        n, width = numel(shapes[index]), widths[index]
        planes = range(firsts[index], firsts[index] + width)
        parts = [_plane(data[starts[p] : starts[p + 1]], bool(int(coded[p]) & _DEFLATED), n) for p in planes]
        raw = np.empty((n, width), np.uint8)
        for column, part in enumerate(parts):
            raw[:, column] = np.frombuffer(part, np.uint8)
        out.append(from_bytes(dtypes[index], shapes[index], raw.reshape(-1)))
    return out


def _plane(part: memoryview, deflated: bool, n: int) -> bytes | memoryview:
    """The n bytes of a plane; no more than n + 1 are ever inflated."""
    if not deflated:
        plane: bytes | memoryview = part
    else:
        try:
            plane = zlib.decompressobj().decompress(part, n + 1)
        except zlib.error as error:
            raise BadFileError("carried data is damaged") from error
    if len(plane) != n:
        raise BadFileError("carried data does not fit the shape of its tensor")
    return plane
