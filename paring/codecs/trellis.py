"""The trellis codec, version 2: tensors of scale * level, at any number of bits a value, near to the least
possible.

A payload is: the header; the blocks of symbols, one after the other; zeros, where entries outnumber its bytes
32,768 times or segments 64 times. The header is one rANS state (uint32, little endian) and its words
(uint16), which end where all is told: log2 of the number of states; how long scales are; the layout of each
tensor; the class of each segment, and the fp32 scale of those of a class other than 0; the length of each
block and the state that its trellis begins in. ``kernels/trellis/header_reference.py`` says how.

As in the ternary codec, shapes, dtypes and checksums are the container's; a damaged payload raises
BadFileError or yields wrong values, and does no other harm.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from paring.codecs import deflated, levels
from paring.codecs.levels import WHAT, most_bytes, values
from paring.dtypes import Stored
from paring.errors import BadFileError
from paring.kernels.trellis import tables
from paring.kernels.trellis.tensor import Levels

ID = "trellis"
VERSION = 2
ITEM = Levels
PACK = "trellis"

__all__ = ["ID", "ITEM", "PACK", "VERSION", "Levels", "decode", "encode", "most_bytes", "values"]

_MANTISSA = 23
_SEGMENTS = 64  # that one byte of a payload can stand for


def encode(items: Sequence[Levels]) -> bytes:
    """Code tensors into one payload; the same bytes for the same tensors. All have the same ``bits``.

    Raises BadValueError where symbols, classes or scales do not fit the shape, a class or trellis is unknown
    or a scale not finite.
    """
    from paring.kernels.trellis import header

    coded = levels.coded(items)
    scales = coded.scales.view(np.uint32)
    numbers = np.array([coded.bits, *_mantissas(coded)], np.int64)
    lengths = np.array([len(block) // 2 for block in coded.blocks], np.int64)
    words = header.written(numbers, coded.layouts, coded.parts, coded.classes, scales, lengths, coded.states)
    payload = b"".join((words.astype("<u2").tobytes(), *coded.blocks))
    return payload.ljust(_least([item.shape for item in items], len(coded.classes)), b"\0")


def _mantissas(coded: levels.Coded) -> list[int]:
    """Of the scales of each layout, how many bits behind the leading one are needed."""
    by_segment = np.repeat(coded.layouts, [count for count, _ in coded.parts])
    words = coded.scales.view(np.uint32) & np.uint32((1 << _MANTISSA) - 1)
    out = []
    for layout in range(3):
        some = int(np.bitwise_or.reduce(words[by_segment == layout], initial=0))
        out.append(_MANTISSA + 1 - (some & -some).bit_length() if some else 0)
    return out


def _least(shapes: Sequence[tuple[int, ...]], segments: int) -> int:
    return max(deflated.least_bytes(shapes), -(-segments // _SEGMENTS))


def read(payload: bytes | memoryview, shapes: Sequence[tuple[int, ...]]) -> levels.Read:
    """Check and read all but the blocks, taking no more memory than the payload's bytes can stand for. Raises
    BadFileError.
    """
    from paring.kernels.trellis import header

    data = np.frombuffer(payload, np.uint8)
    if deflated.least_bytes(shapes) > len(data):
        raise BadFileError(f"{WHAT} is too short for the shapes of its tensors")
    tape = header.Tape.reading(data[: len(data) // 2 * 2].view("<u2"))
    numbers, codes = np.zeros(4, np.int64), np.zeros(len(shapes), np.uint8)
    tape.begun(numbers, codes)
    bits = int(numbers[0])
    if bits not in tables.CHECKS or (numbers[1:] > _MANTISSA).any():
        raise BadFileError(f"{WHAT} has an unknown trellis: it is damaged, or of a newer version")
    layouts, parts = levels.cut(codes.tolist(), shapes)
    count = sum(segments for segments, _ in parts)
    least = _least(shapes, count)
    if least > len(data):
        raise BadFileError(f"{WHAT} is too short for the shapes of its tensors")
    classes, scales = np.zeros(count, np.uint8), np.zeros(count, np.uint32)
    tape.segments(numbers, codes, parts, classes, scales)
    lengths, begins = levels.begins_of(parts, classes)
    blocks = -(-int(begins[-1]) // levels.BLOCK)
    sizes, states = np.zeros(blocks, np.int64), np.zeros(blocks, np.uint8)
    tape.index(bits, sizes, states)
    if not tape.ended:
        raise BadFileError(f"{WHAT} has a damaged header")
    rest = data[2 * tape.at :]
    found = levels.Read(
        bits, layouts, parts, classes, scales.view(np.float32), lengths, begins, states, 2 * sizes, rest
    )
    return found.checked(least - 2 * tape.at)


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
    levels.floats(dtypes, wanted)
    return levels.decoded(read(payload, shapes), shapes, dtypes, wanted, threads)
