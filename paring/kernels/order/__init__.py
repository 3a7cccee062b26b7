"""Exact order statistics of magnitudes by histograms that can be merged.

The magnitude bits of an fp32 number order as the number does. ``high`` counts the upper 16 of the 31 bits
(65,536 buckets), ``low`` the other 15 within one bucket (32,768): two passes over any number of chunks, in
any order, find any order statistic exactly. Values must be finite.

:mod:`paring.ranks` needs one pass where a sample tells where to look: ``brackets`` picks the keys in
brackets, ``count`` counts them in bins. A *key* (uint32) orders as its number does: the magnitude bits, or of
a signed number its bits made ascending.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from paring import kernels

Counts = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]
Keys = npt.NDArray[np.uint32]
#: row, lowest and highest key
Bracket = tuple[int, int, int]

HIGH = 65_536
LOW = 32_768


def _run(name: str, device: str, values: F32, *rest: int) -> Counts:
    module = kernels.module("order", "cpu" if device == "cpu" else "gpu")
    if device == "cpu":
        counts: Counts = getattr(module, name)(values, *rest)
    else:
        counts = getattr(module, name)(module.send(values, device), *rest).cpu().numpy()
    return counts


def high(values: F32, device: str = "cpu") -> Counts:
    """Counts ``(65536,)`` of the upper 16 magnitude bits of ``values (n,)``, made on ``device``."""
    return _run("high", device, values)


def low(values: F32, bucket: int, device: str = "cpu") -> Counts:
    """Counts ``(32768,)`` of the lower 15 magnitude bits of those ``values (n,)`` that fall in ``bucket``."""
    return _run("low", device, values, bucket)


def _for(values: Any) -> ModuleType:
    return kernels.module_for("order", values)


def keys(values: F32, signed: bool) -> Keys:
    """The keys of ``values (n,)``."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    if not signed:
        return bits & np.uint32(0x7FFFFFFF)
    return np.where(bits >> 31, ~bits, bits | np.uint32(0x80000000))


def value(key: int, signed: bool) -> np.float32:
    """The number whose key this is."""
    bits = np.uint32(key)
    if signed:
        bits = bits & np.uint32(0x7FFFFFFF) if bits >> np.uint32(31) else ~bits
    return bits.view(np.float32)


def brackets(values: F32, signed: bool, wanted: Sequence[Bracket]) -> list[tuple[int, Keys]]:
    """Of each bracket ``(row, low, high)`` how many keys of that row of ``values (rows, k)`` are below
    ``low``, and the keys in ``low .. high``, both included."""
    found: list[tuple[int, Keys]] = _for(values).brackets(values, signed, wanted)
    return found


def count(values: F32, signed: bool, low: int, shift: int) -> tuple[int, Counts]:
    """How many keys are below ``low``; counts ``(65536,)`` of those from it on, ``2^shift`` keys a bin."""
    found: tuple[int, Counts] = _for(values).count(values, signed, low, shift)
    return found


def kth_largest(high_counts: Counts, refine: Callable[[int], Counts], k: int) -> np.float32:
    """The k-th largest magnitude, 1 <= k <= n, given all ``high_counts (65536,)`` and
    ``refine(bucket)``, the low ones ``(32768,)``."""
    above = np.cumsum(high_counts[::-1])
    bucket = HIGH - 1 - int(np.searchsorted(above, k))
    rest = k - int(above[HIGH - 1 - bucket] - high_counts[bucket])
    within = np.cumsum(refine(bucket)[::-1])
    bits = (bucket << 15) | (LOW - 1 - int(np.searchsorted(within, rest)))
    return np.uint32(bits).view(np.float32)
