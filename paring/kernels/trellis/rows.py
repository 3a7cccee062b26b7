"""Many segments at once: levels at a price for each row of a matrix, and signs of the largest entries."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from paring.kernels.jit import jit
from paring.kernels.trellis import cpu, tables

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
_NEAR = 3  # classes on either side of the one that is expected
_QUANTISE: Any = cpu.quantise
_LEVELS: Any = cpu.levels


@cache
def _rates() -> tuple[F64, npt.NDArray[np.int64]]:
    """The rates of all classes in one array (classes + 1, 2, widest), and how many of each are used."""
    each = [tables.rates(cls) for cls in range(1, tables.CLASSES + 1)]
    out = np.zeros((tables.CLASSES + 1, 2, max(rate.shape[1] for rate in each)))
    widths = np.zeros(tables.CLASSES + 1, np.int64)
    for cls, rate in enumerate(each, 1):
        widths[cls] = rate.shape[1]
        out[cls, :, : widths[cls]] = rate
    return out, widths


@jit()
def _bits(k: Any, following: Any, rate: Any, width: Any) -> float:
    state: Any
    span, state, total = width // 2, 0, 0.0
    for value in k:
        total += rate[state & 1, span + min(max(np.int64(value), -span), span)]
        state = following[state, np.int64(value) & 1]
    return total


@jit()
def _quantise(
    x: Any, prices: Any, steps: Any, classes: Any, h1: int, h0: int, states: int, most: int, rates: Any,
    widths: Any, following: Any, k: Any,
) -> None:  # fmt: skip
    for row in range(len(x)):
        cls: Any = np.int64(classes[row])
        if cls == 0 or not steps[row] > 0:
            classes[row] = 0
            continue
        scaled = x[row] / steps[row]
        rate = rates[cls, :, : widths[cls]].copy()
        _QUANTISE(scaled, prices[row] / steps[row] ** 2, rate, h1, h0, states, most, k[row])
        if not k[row].any():
            classes[row] = 0
            continue
        best: Any = cls
        least = np.inf
        for candidate in range(max(1, cls - _NEAR), min(len(widths) - 1, cls + _NEAR) + 1):
            found = _bits(k[row], following, rates[candidate], widths[candidate])
            if found < least:
                best, least = candidate, found
        classes[row] = best


@jit()
def _dense(k: Any, classes: Any, following: Any, out: Any) -> None:
    for row in range(len(k)):
        if classes[row]:
            _LEVELS(k[row], following, out[row])


@jit()
def _largest(
    x: Any, price: float, bits: Any, fixed: float, kept: Any, scale: Any, threshold: Any, cost: Any
) -> None:
    n = x.shape[1]
    for row in range(len(x)):
        sizes = -np.sort(-np.abs(x[row]))
        energy = 0.0
        for value in sizes:
            energy += np.float64(value) ** 2
        best, most, total, mean = energy, 0, 0.0, 0.0
        for m in range(1, n + 1):
            if not sizes[m - 1] > 0:
                break
            total += sizes[m - 1]
            made = fixed if fixed > 0 else total / m
            lost = energy - 2 * made * total + made * made * m
            found = lost + price * bits[m]
            if found < best:
                best, most, mean = found, m, total / m
        kept[row], cost[row] = most, best
        scale[row] = mean
        threshold[row] = sizes[most - 1] if most else np.inf


def quantise(
    x: F64, prices: F64, steps: F64, classes: npt.NDArray[np.uint8], bits: int
) -> npt.NDArray[np.int16]:
    """Symbols (rows, n) of the rows of ``x``, each in levels of its own step at its own price of a bit.

    ``classes`` (rows,) are those expected, 0 for rows that stay zero; they become those that fit best.
    ``bits`` is log2 of the number of states. As :func:`.tensor.quantise`, without its overhead.
    """
    k = np.zeros(x.shape, np.int16)
    h1, h0 = tables.CHECKS[bits]
    rates, widths = _rates()
    following = tables.next_states(bits)
    most = tables.MOST_K
    _quantise(x, prices, steps, classes, h1, h0, 1 << bits, most, rates, widths, following, k)
    return k


def levels(k: npt.NDArray[np.int16], classes: npt.NDArray[np.uint8], bits: int) -> npt.NDArray[np.int32]:
    """The levels (rows, n) of symbols, zero in rows of class 0."""
    out = np.zeros(k.shape, np.int32)
    _dense(k, classes, tables.next_states(bits), out)
    return out


def largest(
    x: F32, price: float, fixed: float = 0.0, side: float = 0.0
) -> tuple[npt.NDArray[np.int64], F64, F32, F64]:
    """For every row of ``x`` (rows, n): how many of its largest magnitudes, made one with their signs, have
    least ``||x - x'||^2 + price * bits``; their mean, the least of them, and that least cost.

    A row that keeps m of n takes ``n H(m / n) + m + side`` bits. With ``fixed``, that is the magnitude which
    they all get, else their mean.
    """
    n = x.shape[1]
    share = np.arange(n + 1) / max(1, n)
    with np.errstate(divide="ignore", invalid="ignore"):
        entropy = -share * np.log2(share) - (1 - share) * np.log2(1 - share)
    bits = n * np.nan_to_num(entropy) + np.arange(n + 1) + side
    kept, threshold = np.zeros(len(x), np.int64), np.zeros(len(x), np.float32)
    scale, cost = np.zeros(len(x)), np.zeros(len(x))
    _largest(x, float(price), bits, float(fixed), kept, scale, threshold, cost)
    return kept, scale, threshold, cost
