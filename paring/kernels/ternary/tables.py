"""Tables for the block coder's loops, derived from ``reference.py``."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from paring.kernels.ternary import reference
from paring.kernels.ternary.reference import CLASSES, DENSITIES

#: by byte: its ones
COUNT = np.bitwise_count(np.arange(256, dtype=np.uint8)).astype(np.int64)
#: by mask nibble and the next four sign bits (16 * mask + bits): those bits moved to the ones of the mask
DEPOSIT = np.array(
    [
        sum((s >> (m & (1 << i) - 1).bit_count() & 1) << i for i in range(4) if m >> i & 1)
        for m in range(16)
        for s in range(16)
    ],
    np.uint8,
)
#: by mask nibble and sign nibble (16 * mask + sign): the signs of the ones of the mask, gathered
EXTRACT = np.array(
    [
        sum((s >> i & 1) << (m & (1 << i) - 1).bit_count() for i in range(4) if m >> i & 1)
        for m in range(16)
        for s in range(16)
    ],
    np.uint8,
)


@functools.cache
def _slots(j: int) -> npt.NDArray[np.uint16]:
    """By the low 12 bits of a state in class j: frequency, those less the start, mask: (3 * 4096,)."""
    f = np.array(reference.frequencies(DENSITIES[j]))
    symbol = np.repeat(np.arange(257), f)
    rest = np.arange(4096) - (np.cumsum(f) - f)[symbol]
    mask = np.where(symbol == reference.ESCAPE, reference.marker(DENSITIES[j]), symbol)
    return np.concatenate([f[symbol], rest, mask]).astype(np.uint16)


def decoding_tables(classes: Iterable[int]) -> tuple[Any, Any]:
    """Slots (CLASSES, 3 * 4096), uint16, and markers (CLASSES,), int64; filled in for ``classes`` only."""
    slots = np.empty((CLASSES, 3 * 4096), np.uint16)
    markers = np.full(CLASSES, -1)
    for j in set(classes) - {0}:
        slots[j] = _slots(j)
        markers[j] = reference.marker(DENSITIES[j])
    return slots, markers


@functools.cache
def encoding_tables() -> tuple[Any, Any]:
    """``reference.costs``, and frequency << 16 | start of masks and escape (CLASSES, 257), int64."""
    f = np.array([(0,) * 257, *(reference.frequencies(q) for q in DENSITIES[1:])])
    return reference.costs(), f << 16 | (np.cumsum(f, 1) - f)
