"""What the versions of the trellis codec have in common: tensors to blocks of symbols, and back.

The symbols of all segments that are not zero, of all tensors, are one sequence, cut in blocks of 65,536
(``kernels/trellis/reference.py`` says how a block is coded). The versions differ in how they tell the rest.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from paring.dtypes import FLOATS, Stored, from_f32, numel
from paring.errors import BadFileError, BadValueError, UnsupportedError
from paring.kernels.ternary.tensor import LAYOUTS, Layout, laid, segments
from paring.kernels.trellis import tables
from paring.kernels.trellis.tensor import Levels, by_segment

BLOCK = 65_536
WHAT = "trellis data"
Ints = npt.NDArray[np.int64]
Parts = list[tuple[int, int]]  # of each tensor: how many segments, and how many entries each


def most_bytes(item: Levels) -> int:
    """About as many bytes as ``item`` can take, and more than it does take in practice."""
    return 2 * numel(item.shape)


@dataclass(frozen=True, eq=False)
class Coded:
    """Tensors, their symbols coded: all that a payload tells."""

    bits: int
    layouts: npt.NDArray[np.uint8]  # (tensors,)
    parts: Parts
    classes: npt.NDArray[np.uint8]  # (segments,), over all tensors
    scales: npt.NDArray[np.float32]  # (segments,): 0 for those of class 0
    states: npt.NDArray[np.uint8]  # (blocks,): of the trellis, where each begins
    blocks: list[bytes]


def coded(items: Sequence[Levels]) -> Coded:
    """Code the symbols of tensors; all have the same ``bits``.

    Raises BadValueError where symbols, classes or scales do not fit the shape, a class or trellis is unknown
    or a scale not finite.
    """
    from paring.kernels.trellis import coder

    bits = items[0].bits if items else 2
    for item in items:
        _check(item, bits)
    used = [item.classes > 0 for item in items]
    k = np.concatenate(
        [np.zeros(0, np.int16), *(item.k[own].reshape(-1) for item, own in zip(items, used, strict=True))]
    )
    classes = np.concatenate([np.zeros(0, np.uint8), *(item.classes for item in items)])
    scales = np.concatenate([np.zeros(0, np.float32), *(item.scale for item in items)])
    lengths = [np.full(int(own.sum()), item.k.shape[1]) for item, own in zip(items, used, strict=True)]
    begins = np.append(0, np.cumsum(np.concatenate([np.zeros(0, np.int64), *lengths])))
    quantiser, states = np.empty(len(k), np.uint8), np.zeros(-(-len(k) // BLOCK), np.uint8)
    coder.walk(k, begins, tables.next_states(bits), BLOCK, quantiser, states)
    freq, start, shifts = tables.coding_tables()
    models, blocks = classes[classes > 0], []
    for first in range(0, len(k), BLOCK):
        last = min(first + BLOCK, len(k))
        words = np.empty(3 * (last - first) + 8, np.uint16)
        at = coder.encode_block(k, quantiser, first, last, begins, models, freq, start, shifts, words)
        blocks.append(words[at:].astype("<u2").tobytes())
    layouts = np.array([LAYOUTS.index(item.layout) for item in items], np.uint8)
    parts = [segments(item.shape, item.layout) for item in items]
    return Coded(bits, layouts, parts, classes, np.where(classes > 0, scales, 0), states, blocks)


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


def cut(codes: Sequence[int], shapes: Sequence[tuple[int, ...]]) -> tuple[tuple[Layout, ...], Parts]:
    """The layouts that ``codes`` give tensors of ``shapes``, and the parts of these. Raises BadFileError."""
    if any(code >= len(LAYOUTS) for code in codes):
        raise BadFileError(f"{WHAT} has an unknown layout: it is damaged, or of a newer version")
    layouts = tuple(LAYOUTS[code] for code in codes)
    if any(layout != "whole" and not shape for layout, shape in zip(layouts, shapes, strict=True)):
        raise BadFileError(f"{WHAT} does not fit the shapes of its tensors")
    return layouts, [segments(shape, layout) for shape, layout in zip(shapes, layouts, strict=True)]


def begins_of(parts: Parts, classes: npt.NDArray[np.uint8]) -> tuple[Ints, Ints]:
    """Entries of each segment, and its first symbol (segments + 1,); those of class 0 have none."""
    lengths = np.repeat(np.array([n for _, n in parts], np.int64), [count for count, _ in parts])
    return lengths, np.append(0, np.cumsum(np.where(classes > 0, lengths, 0)))


@dataclass(frozen=True, eq=False)
class Read:
    """A payload of which all but the blocks has been read; segments are counted over all its tensors."""

    bits: int
    layouts: tuple[Layout, ...]
    parts: Parts
    classes: npt.NDArray[np.uint8]
    scales: npt.NDArray[np.float32]  # (segments,): 0 for those of class 0
    lengths: Ints  # (segments,): entries of each
    begins: Ints  # (segments + 1,): the first symbol of each
    states: npt.NDArray[np.uint8]
    sizes: Ints  # (blocks,): bytes of each
    data: npt.NDArray[np.uint8]  # the blocks, and zeros

    def checked(self, least: int) -> Read:
        """Itself, of a payload that has ``least`` bytes behind what was read, if need be zeros. Raises
        BadFileError.
        """
        if not np.isfinite(self.scales).all():
            raise BadFileError(f"{WHAT} is damaged: a scale is not finite")
        if (self.sizes % 2).any() or (self.sizes > len(self.data)).any() or (self.states >> self.bits).any():
            raise BadFileError(f"{WHAT} is damaged")
        end = int(self.sizes.sum())
        if len(self.data) != max(end, least) or self.data[end:].any():
            raise BadFileError(f"{WHAT} is damaged: its parts do not add up")
        return self


def decoded(
    read: Read, shapes: Sequence[tuple[int, ...]], dtypes: Sequence[str], wanted: Sequence[int], threads: int
) -> list[Stored]:
    """The tensors ``wanted``; only blocks that they touch are decoded."""
    owns = np.append(0, np.cumsum([count for count, _ in read.parts], dtype=np.int64))
    spans = [(int(read.begins[owns[i]]), int(read.begins[owns[i + 1]])) for i in wanted]
    touched = sorted(
        {b for first, last in spans if last > first for b in range(first // BLOCK, -(-last // BLOCK))}
    )
    found = dict(zip(touched, _blocks(read, touched, threads), strict=True))
    return [
        _finish(read, i, slice(int(owns[i]), int(owns[i + 1])), span, found, shapes[i], dtypes[i])
        for i, span in zip(wanted, spans, strict=True)
    ]


def floats(dtypes: Sequence[str], wanted: Sequence[int]) -> None:
    """Refuse dtypes that levels do not decode to. Raises UnsupportedError."""
    if strange := [dtypes[i] for i in wanted if dtypes[i] not in FLOATS]:
        raise UnsupportedError(f"{WHAT} cannot be decoded to {strange[0]}")


def _blocks(read: Read, touched: Sequence[int], threads: int) -> Iterable[npt.NDArray[np.int32]]:
    """The levels of the blocks ``touched``."""
    from paring.kernels.trellis import coder

    used = read.classes > 0
    models = np.ascontiguousarray(read.classes[used])
    begins = np.append(0, np.cumsum(read.lengths[used]))
    starts = np.append(0, np.cumsum(read.sizes))
    slots = tables.slots()
    freq, start, shifts = tables.coding_tables()
    following = tables.next_states(read.bits)

    def one(block: int) -> npt.NDArray[np.int32]:
        first, last = block * BLOCK, min((block + 1) * BLOCK, int(begins[-1]))
        words = read.data[starts[block] : starts[block + 1]].copy().view("<u2")
        out = np.empty(last - first, np.int32)
        state = int(read.states[block])
        if not coder.decode_block(
            words, first, last, state, begins, models, slots, freq, start, shifts, following, out
        ):
            raise BadFileError(f"{WHAT} is damaged: block {block} does not decode")
        return out

    if threads == 1 or len(touched) < 2:
        return map(one, touched)
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(one, touched))


def _finish(
    read: Read, tensor: int, own: slice, span: tuple[int, int], found: dict[int, Any], shape: tuple[int, ...],
    dtype: str,
) -> Stored:  # fmt: skip
    """One tensor of its blocks' levels."""
    first, last = span
    parts = [
        found[b][max(first - b * BLOCK, 0) : last - b * BLOCK]
        for b in (range(first // BLOCK, -(-last // BLOCK)) if last > first else ())
    ]
    count, n = read.parts[tensor]
    out = np.zeros((count, n))
    if parts:
        used = read.classes[own] > 0
        scaled = np.concatenate(parts).reshape(-1, n) * read.scales[own][used, None].astype(np.float64)
        out[used] = scaled + 0.0  # no -0
    return from_f32(laid(out, read.layouts[tensor], shape), dtype, "a tensor")


def values(item: Levels, dtype: str) -> npt.NDArray[np.float64]:
    """The dense values, in its shape, fp64, that ``item`` decodes to in ``dtype``."""
    scale = np.where(item.classes > 0, item.scale, 0.0).astype(np.float64)
    rows = by_segment(item) * scale[:, None] + 0.0  # no -0
    return from_f32(laid(rows, item.layout, item.shape), dtype, "a tensor").f64()
