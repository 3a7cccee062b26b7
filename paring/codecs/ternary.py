"""The ternary codec: tensors of scale * (-1, 0, +1), coded to within about a percent of their entropy.

A payload is, little endian: the length of the header (uint32); the header; the index, a uint16 a block (bytes
of the block | mode << 14); the blocks one after the other. The symbols (bytes of planes) of all segments of
all tensors are one sequence, cut in blocks of 8192; where a segment ends a piece ends
(``kernels/ternary/reference.py`` says how a block is coded). The header is a raw deflate stream of: the
layout of each tensor, a byte; the fp32 scales of all segments, their first bytes first; the class of each
piece that has symbols, a byte.

Shapes and dtypes are not in the payload: its container knows them. Nor are checksums: a damaged payload
raises BadFileError or yields wrong values, and does no other harm.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from paring.codecs import deflated
from paring.dtypes import FLOATS, STORAGE, Stored, from_f32, itemsize, numel
from paring.errors import BadFileError, BadValueError, UnsupportedError
from paring.kernels.ternary.reference import BLOCK, Bytes
from paring.kernels.ternary.tensor import (
    LAYOUTS,
    Layout,
    Ternary,
    from_floats,
    from_trits,
    segments,
    to_trits,
)  # fmt: skip

ID = "ternary"
VERSION = 1
ITEM = Ternary
PACK = "ternary"

__all__ = ["ID", "ITEM", "LAYOUTS", "PACK", "VERSION", "Layout", "Ternary", "decode", "encode", "from_floats",
           "from_trits", "most_bytes", "planes", "segments", "to_trits", "values"]  # fmt: skip

_Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class _Plan:
    """Where everything is, in symbols: by tensor, by segment (``begins``, ``lengths``) and by piece."""

    tensors: _Ints  # (tensors + 1,): the first segment of each
    begins: _Ints  # (segments + 1,): the first symbol of each
    lengths: _Ints  # (segments,): entries
    pieces: _Ints  # (pieces + 1,): the first symbol of each
    firsts: _Ints  # (blocks + 1,): the first piece of each
    owner: _Ints  # (pieces,): its segment

    def blocks(self, tensor: int) -> range:
        """The blocks that a tensor touches."""
        a, b = (int(self.begins[self.tensors[tensor + i]]) for i in (0, 1))
        return range(a // BLOCK, -(-b // BLOCK)) if b > a else range(0)


def _plan(parts: Sequence[tuple[int, int]]) -> _Plan:
    """Lay out tensors that consist of (segments, entries of each)."""
    counts = np.array([count for count, _ in parts], np.int64)
    lengths = np.repeat(np.array([n for _, n in parts], np.int64), counts)
    begins = np.append(0, np.cumsum((lengths + 7) >> 3))
    cuts = np.arange(0, begins[-1], BLOCK)
    pieces = np.union1d(begins, cuts)
    firsts = np.append(np.searchsorted(pieces, cuts), len(pieces) - 1)
    owner = np.searchsorted(begins, pieces[:-1], "right") - 1
    return _Plan(np.append(0, np.cumsum(counts)), begins, lengths, pieces, firsts, owner)


def most_bytes(item: Ternary) -> int:
    """More bytes than ``item`` takes: no coding takes more than two bits a parameter."""
    return -(-numel(item.shape) // 4)


def values(item: Ternary, dtype: str) -> npt.NDArray[np.float64]:
    """The dense values, in its shape, fp64, that ``item`` decodes to in ``dtype``."""
    scale = from_f32(item.scale, dtype, "a scale")
    wide = scale.f64()
    trits = to_trits(item).astype(np.float64)
    if item.layout == "rows":
        return trits * wide.reshape(-1, *[1] * (trits.ndim - 1))
    if item.layout == "columns":
        return (trits.reshape(trits.shape[0], -1) * wide).reshape(trits.shape)
    return trits * float(wide[0])


def encode(items: Sequence[Ternary]) -> bytes:
    """Code tensors into one payload; the same bytes for the same tensors.

    Raises BadValueError where planes or scales do not fit the shape, padding is not zero or a scale not
    finite.
    """
    from paring.kernels.ternary import encoder, tables

    parts = [segments(item.shape, item.layout) for item in items]
    for item, (count, n) in zip(items, parts, strict=True):
        if not item.mask.shape == item.sign.shape == (count * ((n + 7) // 8),) or item.scale.shape != (
            count,
        ):
            raise BadValueError(
                f"planes or scales do not fit a tensor of shape {item.shape} by {item.layout}"
            )
        if n % 8 and (item.mask.reshape(count, n // 8 + 1)[:, -1] >> n % 8).any():
            raise BadValueError(f"planes of a tensor of shape {item.shape} have ones behind their last entry")
        if not np.isfinite(item.scale).all():
            raise BadValueError(f"a scale of a tensor of shape {item.shape} is not finite")
    plan = _plan(parts)
    mask, sign = (_joined([getattr(item, plane) for item in items], np.uint8) for plane in ("mask", "sign"))
    scales = _joined([item.scale for item in items], "<f4")
    classes = np.zeros(len(plan.owner), np.uint8)
    index = np.zeros(len(plan.firsts) - 1, "<u2")
    out = np.empty(2 * len(mask) + 64, np.uint8)
    size = encoder.encode_blocks(
        mask, sign, plan.pieces, plan.firsts, *tables.encoding_tables(), classes, index, out
    )
    layouts = bytes(LAYOUTS.index(item.layout) for item in items)
    side = layouts + deflated.planes(scales) + classes.tobytes()
    header = deflated.written(side)
    return b"".join((len(header).to_bytes(4, "little"), header, index.tobytes(), out[:size].tobytes()))


def _joined(arrays: Sequence[npt.NDArray[Any]], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    if len(arrays) == 1:
        return np.ascontiguousarray(arrays[0], dtype)
    return np.concatenate([np.zeros(0, dtype), *arrays]).astype(dtype, copy=False)


@dataclass(frozen=True, eq=False)
class _Read:
    """A payload whose header has been read and checked."""

    layouts: tuple[Layout, ...]
    plan: _Plan
    scales: npt.NDArray[np.float32]
    classes: Bytes
    index: npt.NDArray[np.uint16]
    data: Bytes
    starts: _Ints  # (blocks + 1,): where in data each begins

    def kernel_arguments(self) -> tuple[Any, ...]:
        from paring.kernels.ternary import tables

        plan = self.plan
        slots = tables.decoding_tables(np.flatnonzero(np.bincount(self.classes)).tolist())
        return plan.pieces, plan.firsts, self.classes, *slots, plan.owner, plan.begins


def _read(payload: bytes | memoryview, shapes: Sequence[tuple[int, ...]]) -> _Read:
    """Check and read all but the blocks, taking no more memory than the payload's bytes can stand for."""
    data = np.frombuffer(payload, np.uint8)
    size = int.from_bytes(data[:4].tobytes(), "little")
    if len(data) < 4 or size > len(data) - 4:
        raise BadFileError("ternary data is cut short")
    inflate = deflated.reader(data[4 : 4 + size].tobytes(), "ternary data")
    codes = inflate(len(shapes))
    if any(code >= len(LAYOUTS) for code in codes):
        raise BadFileError("ternary data has an unknown layout: it is damaged, or of a newer version")
    layouts = tuple(LAYOUTS[code] for code in codes)
    if any(layout != "whole" and not shape for layout, shape in zip(layouts, shapes, strict=True)):
        raise BadFileError("ternary data does not fit the shapes of its tensors")
    parts = [segments(shape, layout) for shape, layout in zip(shapes, layouts, strict=True)]
    blocks = -(-sum(count * -(-n // 8) for count, n in parts) // BLOCK)
    if 4 * sum(count for count, _ in parts) > deflated.MOST * size or 2 * blocks > len(data) - 4 - size:
        raise BadFileError("ternary data is too short for the shapes of its tensors")
    plan = _plan(parts)
    scale = deflated.unplaned(inflate(4 * len(plan.lengths)), "<f4")
    classes = np.frombuffer(inflate(len(plan.owner)), np.uint8)
    index = np.frombuffer(data[4 + size : 4 + size + 2 * blocks].tobytes(), "<u2")
    starts = np.append(0, np.cumsum(index & 0x3FFF, dtype=np.int64))
    data = data[4 + size + 2 * blocks :]
    if starts[-1] != len(data) or (classes >= 64).any() or not np.isfinite(scale).all():
        raise BadFileError("ternary data is damaged")
    return _Read(layouts, plan, scale, classes, index, data, starts)


def _run(kernel: Callable[..., int], blocks: Iterable[int], threads: int, before: Any, after: Any) -> None:
    """Run a decoding kernel on ``blocks``, in about four shares a thread."""
    todo = np.array(sorted(blocks), np.int64)
    share = max(8, -(-len(todo) // (4 * threads))) if threads > 1 else len(todo)
    shares = [todo[i : i + share] for i in range(0, len(todo), max(share, 1))]
    if len(shares) > 1:
        with ThreadPoolExecutor(threads) as pool:
            bad = max(pool.map(lambda part: kernel(*before, part, *after), shares))
    else:
        bad = max((kernel(*before, part, *after) for part in shares), default=-1)
    if bad >= 0:
        raise BadFileError(f"ternary data is damaged: block {bad} does not decode")


def decode(
    payload: bytes | memoryview,
    shapes: Sequence[tuple[int, ...]],
    dtypes: Sequence[str],
    select: Sequence[int] | None = None,
    threads: int = 1,
    buffer: Bytes | None = None,
) -> list[Stored]:
    """The tensors ``select`` (all), in order, dense: scale * trit rounded once to nearest even; zeros are +0.

    ``shapes`` and ``dtypes`` (F64, F32, F16 or BF16) are those of all tensors of the payload. Only blocks
    that the selected tensors touch are decoded. Tensors of one item size share memory, that of ``buffer``
    (bytes,), uint8, where it suffices: memory used before spares page faults. Raises BadFileError on
    damage, BadValueError where a scale overflows its dtype, UnsupportedError for another dtype.
    """
    from paring.kernels.ternary import decoder

    wanted = list(range(len(shapes)) if select is None else select)
    if strange := [dtypes[i] for i in wanted if dtypes[i] not in FLOATS]:
        raise UnsupportedError(f"ternary data cannot be decoded to {strange[0]}")
    read = _read(payload, shapes)
    plan = read.plan
    done: dict[int, Stored] = {}
    for size in sorted({itemsize(dtypes[i]) for i in wanted}):
        group = [i for i in dict.fromkeys(wanted) if itemsize(dtypes[i]) == size]
        bases, total = _targets([numel(shapes[i]) for i in group])
        targets, values = _values(read, group, bases, dtypes, size)
        if buffer is not None and buffer.nbytes >= total * size and buffer.ctypes.data % 8 == 0:
            out, buffer = buffer[: total * size].view(f"u{size}"), buffer[total * size :]
        else:
            out = np.empty(total, f"u{size}")
        blocks = {block for i in group for block in plan.blocks(i)}
        after = (*read.kernel_arguments(), plan.lengths, targets, values, out)
        _run(decoder.decode_dense, blocks, threads, (read.data, read.starts, read.index), after)
        for i, base in zip(group, bases, strict=True):
            dense = out[base : base + numel(shapes[i])].view(STORAGE[dtypes[i]])
            if read.layouts[i] == "columns":
                dense = np.ascontiguousarray(dense.reshape(-1, shapes[i][0]).T) if dense.size else dense
            done[i] = Stored(dtypes[i], dense.reshape(shapes[i]))
    return [done[i] for i in wanted]


def _targets(sizes: Sequence[int]) -> tuple[list[int], int]:
    """Where arrays of so many elements begin in one buffer, each at a multiple of 32; the buffer's length."""
    ends = list(itertools.accumulate((-(-size // 32) * 32 for size in sizes), initial=0))
    return ends[:-1], ends[-1]


def _values(
    read: _Read, group: Sequence[int], bases: Sequence[int], dtypes: Sequence[str], size: int
) -> tuple[_Ints, npt.NDArray[Any]]:
    """Of each segment: where its entries go, or -1; the bits of plus and minus one (segments, 2)."""
    plan = read.plan
    base = np.full(len(plan.tensors) - 1, -1)
    base[list(group)] = bases
    tensor = np.repeat(np.arange(len(base)), np.diff(plan.tensors))
    within = (np.arange(len(tensor)) - plan.tensors[tensor]) * plan.lengths
    targets = np.where(base[tensor] < 0, -1, base[tensor] + within)
    bits = np.dtype(f"u{size}")
    values = np.zeros((len(tensor), 2), bits)
    for dtype in {dtypes[i] for i in group}:
        chosen = np.isin(tensor, [i for i in group if dtypes[i] == dtype])
        values[chosen, 0] = from_f32(read.scales[chosen], dtype).data.view(bits)
    values[:, 1] = values[:, 0] ^ bits.type(1 << (8 * size - 1))
    return targets, values


def planes(payload: bytes | memoryview, shapes: Sequence[tuple[int, ...]], index: int) -> Ternary:
    """Tensor ``index`` of a payload as planes. Raises BadFileError on damage."""
    from paring.kernels.ternary import decoder

    read = _read(payload, shapes)
    plan = read.plan
    a, b = plan.tensors[index], plan.tensors[index + 1]
    count, n = segments(shapes[index], read.layouts[index])
    targets = np.full(len(plan.lengths), -1)
    targets[a:b] = plan.begins[a:b] - plan.begins[a]
    mask, sign = np.zeros((2, plan.begins[b] - plan.begins[a]), np.uint8)
    after = (*read.kernel_arguments(), targets, mask, sign)
    _run(decoder.decode_planes, plan.blocks(index), 1, (read.data, read.starts, read.index), after)
    if n % 8 and (mask.reshape(count, n // 8 + 1)[:, -1] >> n % 8).any():
        raise BadFileError("ternary data is damaged: a tensor has ones behind its last entry")
    return Ternary(tuple(shapes[index]), read.layouts[index], mask, sign, read.scales[a:b].copy())
