"""The trellis codec: tensors of scale * level, at any number of bits a value, near to the least possible.

A payload is, little endian: the length of the header (uint32); the header; the length in bytes of each block
(uint32); the state that its trellis begins in (uint8) of each block; the blocks; zeros, where entries
outnumber its bytes 32,768 times. The symbols of all segments that are not zero, of all tensors, are one
sequence, cut in blocks of 65,536 (``kernels/trellis/reference.py`` says how a block is coded). The header is
a raw deflate stream of: log2 of the number of states, a byte; the layout of each tensor, a byte; the class of
each segment, a byte; the fp32 scales of the segments of a class other than 0, their first bytes first.

As in the ternary codec, shapes, dtypes and checksums are the container's; a damaged payload raises
BadFileError or yields wrong values, and does no other harm.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from paring.codecs import deflated
from paring.dtypes import FLOATS, Stored, from_f32, numel
from paring.errors import BadFileError, BadValueError, UnsupportedError
from paring.kernels.ternary.tensor import LAYOUTS, Layout, laid, segments
from paring.kernels.trellis import tables
from paring.kernels.trellis.tensor import Levels, by_segment

ID = "trellis"
VERSION = 1
ITEM = Levels
PACK = "trellis"

__all__ = ["ID", "ITEM", "PACK", "VERSION", "Levels", "decode", "encode", "most_bytes", "values"]

BLOCK = 65_536
_WHAT = "trellis data"
_Ints = npt.NDArray[np.int64]


def most_bytes(item: Levels) -> int:
    """About as many bytes as ``item`` can take, and more than it does take in practice."""
    return 2 * numel(item.shape)


def encode(items: Sequence[Levels]) -> bytes:
    """Code tensors into one payload; the same bytes for the same tensors. All have the same ``bits``.

    Raises BadValueError where symbols, classes or scales do not fit the shape, a class or trellis is unknown
    or a scale not finite.
    """
    from paring.kernels.trellis import coder

    bits = items[0].bits if items else 2
    for item in items:
        _check(item, bits)
    coded = [item.classes > 0 for item in items]
    k = np.concatenate(
        [np.zeros(0, np.int16), *(item.k[used].reshape(-1) for item, used in zip(items, coded, strict=True))]
    )
    lengths = [
        np.full(int(used.sum()), item.k.shape[1], np.int64) for item, used in zip(items, coded, strict=True)
    ]
    begins = np.append(0, np.cumsum(np.concatenate([np.zeros(0, np.int64), *lengths])))
    classes = np.concatenate([np.zeros(0, np.uint8), *(item.classes for item in items)])
    scales = np.concatenate(
        [np.zeros(0, np.float32), *(item.scale[used] for item, used in zip(items, coded, strict=True))]
    )
    quantiser, states = np.empty(len(k), np.uint8), np.zeros(-(-len(k) // BLOCK), np.uint8)
    coder.walk(k, begins, tables.next_states(bits), BLOCK, quantiser, states)
    freq, start, shifts = tables.coding_tables()
    models, blocks = classes[classes > 0], []
    for first in range(0, len(k), BLOCK):
        last = min(first + BLOCK, len(k))
        words = np.empty(3 * (last - first) + 8, np.uint16)
        at = coder.encode_block(k, quantiser, first, last, begins, models, freq, start, shifts, words)
        blocks.append(words[at:].astype("<u2").tobytes())
    side = bytes([bits, *(LAYOUTS.index(item.layout) for item in items)])
    side += classes.tobytes() + deflated.planes(scales.astype("<f4"))
    header = deflated.written(side)
    index = np.array([len(block) for block in blocks], "<u4").tobytes() + states.tobytes()
    payload = b"".join((len(header).to_bytes(4, "little"), header, index, *blocks))
    return payload.ljust(deflated.least_bytes([item.shape for item in items]), b"\0")


def _check(item: Levels, bits: int) -> None:
    count, n = segments(item.shape, item.layout)
    what = f"a tensor of shape {item.shape} by {item.layout}"
    if item.k.shape != (count, n) or not item.classes.shape == item.scale.shape == (count,):
        raise BadValueError(f"symbols, classes or scales do not fit {what}")
    if item.bits != bits or bits not in tables.CHECKS or (item.classes > tables.CLASSES).any():
        raise BadValueError(
            f"the trellis or a class of {what} is unknown, or another one than its neighbours'"
        )
    if not np.isfinite(item.scale[item.classes > 0]).all():
        raise BadValueError(f"a scale of {what} is not finite")


@dataclass(frozen=True, eq=False)
class _Read:
    """A payload whose header has been read and checked; segments are counted over all its tensors."""

    bits: int
    layouts: tuple[Layout, ...]
    owns: _Ints  # (tensors + 1,): the first segment of each tensor
    lengths: _Ints  # (segments,): entries of each
    begins: _Ints  # (segments + 1,): the first symbol of each; those of class 0 have none
    classes: npt.NDArray[np.uint8]
    scales: npt.NDArray[np.float32]  # (segments,): 0 for those of class 0
    states: npt.NDArray[np.uint8]
    data: npt.NDArray[np.uint8]
    starts: _Ints  # (blocks + 1,): where in data each begins, and where the last one ends


def _read(payload: bytes | memoryview, shapes: Sequence[tuple[int, ...]]) -> _Read:
    """Check and read all but the blocks, taking no more memory than the payload's bytes can stand for."""
    data = np.frombuffer(payload, np.uint8)
    size = int.from_bytes(data[:4].tobytes(), "little")
    if len(data) < 4 or size > len(data) - 4:
        raise BadFileError(f"{_WHAT} is cut short")
    least = deflated.least_bytes(shapes)
    if least > len(data):
        raise BadFileError(f"{_WHAT} is too short for the shapes of its tensors")
    take = deflated.reader(data[4 : 4 + size].tobytes(), _WHAT)
    bits, *codes = take(1 + len(shapes))
    if bits not in tables.CHECKS or any(code >= len(LAYOUTS) for code in codes):
        raise BadFileError(f"{_WHAT} has an unknown trellis or layout: it is damaged, or of a newer version")
    layouts = tuple(LAYOUTS[code] for code in codes)
    if any(layout != "whole" and not shape for layout, shape in zip(layouts, shapes, strict=True)):
        raise BadFileError(f"{_WHAT} does not fit the shapes of its tensors")
    parts = [segments(shape, layout) for shape, layout in zip(shapes, layouts, strict=True)]
    if sum(count for count, _ in parts) > deflated.MOST * size:
        raise BadFileError(f"{_WHAT} is too short for the shapes of its tensors")
    owns = np.append(0, np.cumsum([count for count, _ in parts], dtype=np.int64))
    classes = np.frombuffer(take(int(owns[-1])), np.uint8)
    if (classes > tables.CLASSES).any():
        raise BadFileError(f"{_WHAT} has an unknown class: it is damaged, or of a newer version")
    used = classes > 0
    scales = np.zeros(len(classes), np.float32)
    scales[used] = deflated.unplaned(take(4 * int(used.sum())), "<f4")
    lengths = np.repeat(np.array([n for _, n in parts], np.int64), [count for count, _ in parts])
    begins = np.append(0, np.cumsum(np.where(used, lengths, 0)))
    blocks = -(-int(begins[-1]) // BLOCK)
    index = data[4 + size : 4 + size + 5 * blocks]
    before = 4 + size + 5 * blocks
    if len(index) < 5 * blocks or not np.isfinite(scales).all():
        raise BadFileError(f"{_WHAT} is damaged")
    sizes = index[: 4 * blocks].copy().view("<u4").astype(np.int64)
    states, starts = index[4 * blocks :], np.append(0, np.cumsum(sizes))
    if len(data) != max(before + int(starts[-1]), least) or data[before + int(starts[-1]) :].any():
        raise BadFileError(f"{_WHAT} is damaged: its parts do not add up")
    if (sizes % 2).any() or (states >> bits).any():
        raise BadFileError(f"{_WHAT} is damaged")
    data = data[before:]
    return _Read(bits, layouts, owns, lengths, begins, classes, scales, states, data, starts)


def decode(
    payload: bytes | memoryview,
    shapes: Sequence[tuple[int, ...]],
    dtypes: Sequence[str],
    select: Sequence[int] | None = None,
    threads: int = 1,
) -> list[Stored]:
    """The tensors ``select`` (all), in order, dense: scale * level in fp64, rounded once to nearest even;
    the value of level 0 is +0.

    ``shapes`` and ``dtypes`` (F64, F32, F16 or BF16) are those of all tensors of the payload. Only blocks
    that the selected tensors touch are decoded. Raises BadFileError on damage, BadValueError where a value
    overflows its dtype, UnsupportedError for another dtype.
    """
    wanted = list(range(len(shapes)) if select is None else select)
    if strange := [dtypes[i] for i in wanted if dtypes[i] not in FLOATS]:
        raise UnsupportedError(f"{_WHAT} cannot be decoded to {strange[0]}")
    read = _read(payload, shapes)
    spans = [(int(read.begins[read.owns[i]]), int(read.begins[read.owns[i + 1]])) for i in wanted]
    touched = sorted(
        {b for first, last in spans if last > first for b in range(first // BLOCK, -(-last // BLOCK))}
    )
    found = dict(zip(touched, _blocks(read, touched, threads), strict=True))
    return [
        _finish(read, i, span, found, shapes[i], dtypes[i]) for i, span in zip(wanted, spans, strict=True)
    ]


def _blocks(read: _Read, touched: Sequence[int], threads: int) -> Iterable[npt.NDArray[np.int32]]:
    """The levels of the blocks ``touched``."""
    from paring.kernels.trellis import coder

    used = read.classes > 0
    models = np.ascontiguousarray(read.classes[used])
    begins = np.append(0, np.cumsum(read.lengths[used]))
    slots = tables.slots()
    freq, start, shifts = tables.coding_tables()
    following = tables.next_states(read.bits)

    def one(block: int) -> npt.NDArray[np.int32]:
        first, last = block * BLOCK, min((block + 1) * BLOCK, int(begins[-1]))
        words = read.data[read.starts[block] : read.starts[block + 1]].copy().view("<u2")
        out = np.empty(last - first, np.int32)
        state = int(read.states[block])
        if not coder.decode_block(
            words, first, last, state, begins, models, slots, freq, start, shifts, following, out
        ):
            raise BadFileError(f"{_WHAT} is damaged: block {block} does not decode")
        return out

    if threads == 1 or len(touched) < 2:
        return map(one, touched)
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(one, touched))


def _finish(
    read: _Read, tensor: int, span: tuple[int, int], found: dict[int, Any], shape: tuple[int, ...], dtype: str
) -> Stored:
    """One tensor of its blocks' levels."""
    first, last = span
    parts = [
        found[b][max(first - b * BLOCK, 0) : last - b * BLOCK]
        for b in (range(first // BLOCK, -(-last // BLOCK)) if last > first else ())
    ]
    own = slice(int(read.owns[tensor]), int(read.owns[tensor + 1]))
    count, n = segments(shape, read.layouts[tensor])
    out = np.zeros((count, n))
    if parts:
        used = read.classes[own] > 0
        scaled = np.concatenate(parts).reshape(-1, n) * read.scales[own][used, None].astype(np.float64)
        out[used] = scaled + 0.0  # no -0
    return from_f32(laid(out, read.layouts[tensor], shape), dtype, "a tensor")


def values(item: Levels, dtype: str) -> npt.NDArray[np.float64]:
    """The dense values, fp64, that ``item`` decodes to in ``dtype``."""
    scale = np.where(item.classes > 0, item.scale, 0.0).astype(np.float64)
    rows = by_segment(item) * scale[:, None] + 0.0  # no -0
    return from_f32(laid(rows, item.layout, item.shape), dtype, "a tensor").f64()
