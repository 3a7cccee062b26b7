"""The trellis codec, version 1: what stands beside the symbols is deflated. Read for ever, written no more.

A payload is, little endian: the length of the header (uint32); the header; the length in bytes of each block
(uint32); the state that its trellis begins in (uint8) of each block; the blocks; zeros, where entries
outnumber its bytes 32,768 times. The header is a raw deflate stream of: log2 of the number of states, a byte;
the layout of each tensor, a byte; the class of each segment, a byte; the fp32 scales of the segments of a
class other than 0, their first bytes first.
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
VERSION = 1
ITEM = Levels
PACK = "trellis"

__all__ = ["ID", "ITEM", "PACK", "VERSION", "decode", "encode", "most_bytes", "values"]


def encode(items: Sequence[Levels]) -> bytes:
    """Code tensors into one payload, as :func:`paring.codecs.trellis.encode` does."""
    coded = levels.coded(items)
    scales = coded.scales[coded.classes > 0].astype("<f4")
    side = bytes([coded.bits]) + coded.layouts.tobytes() + coded.classes.tobytes() + deflated.planes(scales)
    header = deflated.written(side)
    index = np.array([len(block) for block in coded.blocks], "<u4").tobytes() + coded.states.tobytes()
    payload = b"".join((len(header).to_bytes(4, "little"), header, index, *coded.blocks))
    return payload.ljust(deflated.least_bytes([item.shape for item in items]), b"\0")


def read(payload: bytes | memoryview, shapes: Sequence[tuple[int, ...]]) -> levels.Read:
    """Check and read all but the blocks, taking no more memory than the payload's bytes can stand for. Raises
    BadFileError.
    """
    data = np.frombuffer(payload, np.uint8)
    size = int.from_bytes(data[:4].tobytes(), "little")
    if len(data) < 4 or size > len(data) - 4:
        raise BadFileError(f"{WHAT} is cut short")
    least = deflated.least_bytes(shapes)
    if least > len(data):
        raise BadFileError(f"{WHAT} is too short for the shapes of its tensors")
    take = deflated.reader(data[4 : 4 + size].tobytes(), WHAT)
    bits, *codes = take(1 + len(shapes))
    if bits not in tables.CHECKS:
        raise BadFileError(f"{WHAT} has an unknown trellis: it is damaged, or of a newer version")
    layouts, parts = levels.cut(codes, shapes)
    count = sum(segments for segments, _ in parts)
    if count > deflated.MOST * size:
        raise BadFileError(f"{WHAT} is too short for the shapes of its tensors")
    classes = np.frombuffer(take(count), np.uint8)
    if (classes > tables.CLASSES).any():
        raise BadFileError(f"{WHAT} has an unknown class: it is damaged, or of a newer version")
    used = classes > 0
    scales = np.zeros(count, np.float32)
    scales[used] = deflated.unplaned(take(4 * int(used.sum())), "<f4")
    lengths, begins = levels.begins_of(parts, classes)
    blocks = -(-int(begins[-1]) // levels.BLOCK)
    before = 4 + size + 5 * blocks
    index = data[4 + size : before]
    if len(index) < 5 * blocks:
        raise BadFileError(f"{WHAT} is damaged")
    sizes, states = index[: 4 * blocks].copy().view("<u4").astype(np.int64), index[4 * blocks :]
    found = levels.Read(
        bits, layouts, parts, classes, scales, lengths, begins, states, sizes, data[before:]
    )  # fmt: skip
    return found.checked(least - before)


def decode(
    payload: bytes | memoryview,
    shapes: Sequence[tuple[int, ...]],
    dtypes: Sequence[str],
    select: Sequence[int] | None = None,
    threads: int = 1,
) -> list[Stored]:
    """The tensors ``select`` (all), as :func:`paring.codecs.trellis.decode` gives them."""
    wanted = list(range(len(shapes)) if select is None else select)
    levels.floats(dtypes, wanted)
    return levels.decoded(read(payload, shapes), shapes, dtypes, wanted, threads)
