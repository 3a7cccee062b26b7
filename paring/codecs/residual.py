"""The residual codec: a tensor as another one of the file, mixed, plus what that leaves.

The *reference* stands earlier in the file. Both are cut in segments the same way; the prediction is the
reference's segments as they are, or times one number, or mixed by a matrix: segment i is ``sum_k mix[i, k]
reference[k]``, in fp64, products and sums rounded one by one for k = 0, 1, ... (no fused operations), so
that it is the same everywhere. What is left is nothing, or levels of the trellis codec that are added to it
in fp64 (and the sum rounded once), or exact: the prediction is rounded to the tensor's dtype, and the
difference of both as integers is kept, bit for bit.

A payload is, little endian: the lengths of the header, the exact part and the levels (uint32 each); the
versions of the bytes and the trellis codec (uint8 each); the header; the exact part, a payload of the bytes
codec; the levels, one of the trellis codec; and zeros, so that there is a byte for every 32,768 entries of
all tensors. The header is a raw deflate stream of: for each tensor the number of its reference (uint32),
the layout of the segments, the kind of mix (0 none, 1 one number, 2 a matrix) and of what is left (0
nothing, 1 exact, 2 levels), a byte each; then the mixes in order, a matrix behind its number of columns
(uint32): fp64, row-major, all first bytes first. An exact part holds unsigned integers of the tensor's
shape and the width of its dtype: floats are numbered in ascending order (``~b`` of negative bits b, else b
with its top bit set), and the difference d of tensor and prediction modulo 2^width is stored as 2d, or
where d is negative as -2d - 1. Tensors without exact part or levels are not in the inner payloads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from paring import codecs
from paring.codecs import deflated, trellis
from paring.codecs.zigzag import steps, zigzag
from paring.dtypes import FLOATS, STORAGE, Array, Stored, from_f32, itemsize, numel
from paring.errors import BadFileError, UnsupportedError
from paring.kernels.ternary.tensor import LAYOUTS, Layout, laid, rows_of, segments
from paring.kernels.trellis.tensor import Levels

ID = "residual"
VERSION = 1
PACK = "residual"

__all__ = ["ID", "ITEM", "PACK", "VERSION", "Difference", "apart", "decode", "encode", "most_bytes",
           "predicted", "references", "values"]  # fmt: skip

_WHAT = "residual data"
_HEAD, _ROW = 14, 7  # bytes before the header, and of it a tensor
F64 = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Difference:
    """A tensor of ``shape`` as the tensor number ``reference`` of the file, ``base``, and what is left.

    ``mix`` is None, one number ``()``, or a matrix (segments, segments of the reference); ``left`` is None,
    the exact difference, as :func:`apart` finds it, or levels.
    """

    shape: tuple[int, ...]
    dtype: str
    layout: Layout
    reference: int
    base: Stored
    mix: F64 | None = None
    left: Stored | Levels | None = None


ITEM = Difference


def most_bytes(item: Difference) -> int:
    """More bytes than ``item`` takes in practice."""
    left = 0 if item.left is None else int(codecs.of(item.left).most_bytes(item.left))
    return 64 + left + (0 if item.mix is None else item.mix.nbytes)


def values(item: Difference, dtype: str) -> F64:
    """The values, in its shape, fp64, that ``item`` decodes to in ``dtype``."""
    return _finish(item.base, item.layout, item.mix, _dense(item.left), item.shape, dtype).f64()


def predicted(base: Stored, layout: Layout, mix: F64 | None) -> F64:
    """The prediction (segments, entries), fp64, from the reference ``base``."""
    rows = np.ascontiguousarray(rows_of(base.f64(), layout))
    if mix is None:
        return rows
    if mix.ndim == 0:
        return rows * mix
    out = np.zeros((len(mix), rows.shape[1]))
    for k, row in enumerate(rows):  # one by one: the same sums on every machine
        out += mix[:, k, None] * row
    return out


def apart(tensor: Stored, base: Stored, layout: Layout, mix: F64 | None) -> Stored | None:
    """The exact difference of ``tensor`` and its prediction, zigzag, in its shape and unsigned integers of
    its width; None where the prediction overflows the dtype.
    """
    guess = predicted(base, layout, mix)
    with np.errstate(over="ignore"):
        kind = np.float32 if tensor.dtype == "BF16" else tensor.data.dtype
        if np.abs(guess).max(initial=0.0) > 0.99 * float(np.finfo(kind).max):
            return None
    near = _ordered(from_f32(laid(guess, layout, tensor.shape), tensor.dtype, "a prediction"))
    return Stored(f"U{8 * near.itemsize}", zigzag(_ordered(tensor) - near))


def encode(items: Sequence[Difference]) -> bytes:
    """Code tensors into one payload; the same bytes for the same tensors."""
    rows, mixes = [], []
    for item in items:
        kind = 0 if item.mix is None else 1 if item.mix.ndim == 0 else 2
        left = 0 if item.left is None else 1 if isinstance(item.left, Stored) else 2
        rows.append(item.reference.to_bytes(4, "little") + bytes([LAYOUTS.index(item.layout), kind, left]))
        if item.mix is not None:
            across = b"" if item.mix.ndim == 0 else item.mix.shape[1].to_bytes(4, "little")
            mixes.append(across + deflated.planes(np.asarray(item.mix, "<f8").reshape(-1)))
    header = deflated.written(b"".join([*rows, *mixes]))
    parts = []
    for part in (Stored, Levels):
        own = [item.left for item in items if isinstance(item.left, part)]
        codec = codecs.of(own[0]) if own else None
        parts.append((codec.encode(own), int(codec.VERSION)) if codec else (b"", 0))
    (exact, first), (levels, second) = parts
    sizes = np.array([len(header), len(exact), len(levels)], "<u4").tobytes()
    payload = b"".join((sizes, bytes([first, second]), header, exact, levels))
    return payload.ljust(deflated.least_bytes([item.shape for item in items]), b"\0")


@dataclass(frozen=True, slots=True)
class _Row:
    """What the header says of one tensor."""

    reference: int
    layout: Layout
    kind: int
    left: int


def _rows(
    payload: memoryview, shapes: Sequence[tuple[int, ...]]
) -> tuple[list[_Row], Any, memoryview, memoryview]:
    """The header's rows, a reader of its mixes, the exact part and the levels."""
    if len(payload) < _HEAD:
        raise BadFileError(f"{_WHAT} is cut short")
    size, exact, levels = (int(word) for word in np.frombuffer(payload[:12], "<u4"))
    if _HEAD + size + exact + levels > len(payload) or len(payload) < deflated.least_bytes(shapes):
        raise BadFileError(f"{_WHAT} is cut short")
    take = deflated.reader(bytes(payload[_HEAD : _HEAD + size]), _WHAT)
    raw = take(_ROW * len(shapes))
    out = []
    for at, shape in enumerate(shapes):
        reference = int.from_bytes(raw[_ROW * at : _ROW * at + 4], "little")
        layout, kind, left = raw[_ROW * at + 4 : _ROW * at + 7]
        if layout >= len(LAYOUTS) or kind > 2 or left > 2 or (LAYOUTS[layout] != "whole" and not shape):
            raise BadFileError(f"{_WHAT} is damaged, or of a newer version")
        out.append(_Row(reference, LAYOUTS[layout], kind, left))
    first = _HEAD + size
    return out, take, payload[first : first + exact], payload[first + exact : first + exact + levels]


def references(payload: bytes | memoryview, shapes: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """Of each tensor of a payload the number of the one that it refers to."""
    rows, *_ = _rows(memoryview(payload), shapes)
    return [(row.reference,) for row in rows]


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

    Raises BadFileError on damage and for a reference that does not fit, BadValueError where a value
    overflows its dtype, UnsupportedError for a dtype that is not floating point.
    """
    data = memoryview(payload)
    wanted = list(range(len(shapes)) if select is None else select)
    if strange := [dtypes[i] for i in wanted if dtypes[i] not in FLOATS]:
        raise UnsupportedError(f"{_WHAT} cannot be decoded to {strange[0]}")
    rows, take, exact, levels = _rows(data, shapes)
    mixes: dict[int, F64] = {}
    for i, row in enumerate(rows[: max(wanted, default=-1) + 1]):
        if row.kind:
            mixes[i] = _mix(take, row, shapes[i], len(data))
    left: dict[int, Any] = {}
    for kind, name, part in ((1, "bytes", exact), (2, "trellis", levels)):
        own = [i for i, row in enumerate(rows) if row.left == kind]
        some = [place for place, i in enumerate(own) if i in wanted]
        if some:
            codec = codecs.find(name, data[11 + kind])
            if codec is None:
                raise UnsupportedError(f"{_WHAT} holds {name} of version {data[11 + kind]}: upgrade paring")
            kinds = [f"U{8 * itemsize(dtypes[i])}" if kind == 1 else "F64" for i in own]
            found = codec.decode(part, [shapes[i] for i in own], kinds, some, threads)
            left |= {own[place]: one for place, one in zip(some, found, strict=True)}
    return [
        _finish(
            _fitting(known, rows[i], shapes[i]),
            rows[i].layout,
            mixes.get(i),
            left.get(i),
            shapes[i],
            dtypes[i],
        )
        for i in wanted
    ]


def _mix(take: Any, row: _Row, shape: tuple[int, ...], size: int) -> F64:
    """The next mix of the header of a payload of ``size`` bytes."""
    shaped: tuple[int, ...] = ()
    if row.kind == 2:
        shaped = (segments(shape, row.layout)[0], int.from_bytes(take(4), "little"))
        if 8 * numel(shaped) > deflated.MOST * size:
            raise BadFileError(f"{_WHAT} is too short for the shapes of its tensors")
    found = deflated.unplaned(take(8 * numel(shaped)), "<f8").reshape(shaped)
    if not np.isfinite(found).all():
        raise BadFileError(f"{_WHAT} is damaged: a mix is not finite")
    return found


def _fitting(known: Mapping[int, Stored], row: _Row, shape: tuple[int, ...]) -> Stored:
    """The reference of a tensor, checked."""
    base = known[row.reference]
    if base.dtype not in FLOATS or (row.layout != "whole" and not base.shape):
        raise BadFileError(f"{_WHAT} is damaged: its reference holds no floating-point rows")
    count, n = segments(shape, row.layout)
    theirs, m = segments(base.shape, row.layout)
    if n != m or (row.kind < 2 and count != theirs):
        raise BadFileError(f"{_WHAT} is damaged: its reference does not fit")
    return base


def _finish(
    base: Stored, layout: Layout, mix: F64 | None, left: Stored | None, shape: tuple[int, ...], dtype: str
) -> Stored:
    if mix is not None and mix.ndim == 2 and mix.shape[1] != segments(base.shape, layout)[0]:
        raise BadFileError(f"{_WHAT} is damaged: a mix does not fit its reference")
    guess = laid(predicted(base, layout, mix), layout, shape)
    if left is None or left.dtype == "F64":
        return from_f32(guess if left is None else guess + left.data, dtype, "a tensor")
    near = _ordered(from_f32(guess, dtype, "a prediction"))
    return _unordered(near + steps(left.data), dtype)


def _dense(left: Stored | Levels | None) -> Stored | None:
    return Stored("F64", trellis.values(left, "F64")) if isinstance(left, Levels) else left


def _ordered(tensor: Stored) -> Array:
    """Floats as unsigned integers in ascending order."""
    kind = np.dtype(f"u{itemsize(tensor.dtype)}")
    bits, top = np.ascontiguousarray(tensor.data).view(kind), kind.type(1 << (8 * kind.itemsize - 1))
    return np.where(bits & top, ~bits, bits | top)


def _unordered(ordered: Array, dtype: str) -> Stored:
    kind = ordered.dtype
    top = kind.type(1 << (8 * kind.itemsize - 1))
    bits = np.where(ordered & top, ordered ^ top, ~ordered)
    return Stored(dtype, np.ascontiguousarray(bits).view(STORAGE[dtype]))
