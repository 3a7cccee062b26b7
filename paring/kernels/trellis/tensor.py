"""Tensors of trellis levels: whole segments quantised at a price, and dense again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from paring.kernels.ternary.tensor import Layout, laid
from paring.kernels.trellis import tables

_SPAN = 1024  # counts of k are kept this far, to choose a class by


@dataclass(frozen=True, eq=False)
class Levels:
    """A tensor of ``shape`` whose segments each are ``scale * level``, levels on a trellis of ``2^bits``
    states.

    ``layout`` says what a segment is, as for ternary tensors. ``classes`` (segments,), uint8, are models,
    0 for a segment of zeros; ``scale`` (segments,) is float32; ``k`` (segments, entries), int16, the symbols.
    """

    shape: tuple[int, ...]
    layout: Layout
    bits: int
    classes: npt.NDArray[np.uint8]
    scale: npt.NDArray[np.float32]
    k: npt.NDArray[np.int16]


def quantise(
    x: npt.NDArray[Any], price: float, cls: int, bits: int
) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.int32], int]:
    """One segment ``x`` (n,), finite, in units of a level: symbols k and levels of least ``sum (x - level)^2
    + price * bits`` for a price of at most 1, and the class, near to ``cls``, that codes them in fewest bits.

    ``bits`` is log2 of the number of states: more of them find better levels, in time proportional. It takes
    ``(32 + states) n`` bytes. Where all levels are zero the class is 0.
    """
    from paring.kernels.trellis import cpu

    x = np.ascontiguousarray(x, np.float64)
    k = np.empty(len(x), np.int16)
    h1, h0 = tables.CHECKS[bits]
    cpu.quantise(x, float(price), tables.rates(cls), h1, h0, 1 << bits, tables.MOST_K, k)
    found = levels(k, bits)
    return k, found, fitting_class(k, bits, cls) if found.any() else 0


def levels(k: npt.NDArray[np.int16], bits: int) -> npt.NDArray[np.int32]:
    """The levels (n,), int32, of the symbols ``k`` (n,) of one segment."""
    from paring.kernels.trellis import cpu

    out = np.empty(len(k), np.int32)
    cpu.levels(k, tables.next_states(bits), out)
    return out


def fitting_class(k: npt.NDArray[np.int16], bits: int, cls: int) -> int:
    """The class within three of ``cls`` that takes fewest bits for the symbols ``k`` (n,) of one segment."""
    from paring.kernels.trellis import cpu

    counts = np.zeros((2, 2 * _SPAN + 1), np.int64)
    cpu.count(k, tables.next_states(bits), _SPAN, counts)
    places = np.arange(-_SPAN, _SPAN + 1)

    def bits_of(candidate: int) -> float:
        rate = tables.rates(candidate)
        span = rate.shape[1] // 2
        return float((counts * rate[:, span + np.clip(places, -span, span)]).sum())

    return min(range(max(1, cls - 3), min(tables.CLASSES, cls + 3) + 1), key=bits_of)


def by_segment(item: Levels) -> npt.NDArray[np.int32]:
    """The levels of ``item``, int32 ``(segments, entries)``."""
    from paring.kernels.trellis import rows

    return rows.levels(item.k, item.classes, item.bits)


def dense(item: Levels) -> npt.NDArray[np.int32]:
    """The levels of ``item``, int32, in its shape."""
    return laid(by_segment(item), item.layout, item.shape)
