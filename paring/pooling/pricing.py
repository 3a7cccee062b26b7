"""Rank vectors on the trellis at a price of a bit, and the price at which an error is met."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from paring.kernels.ternary.tensor import Layout
from paring.kernels.trellis.tensor import Levels, quantise

F64 = npt.NDArray[np.float64]
T = TypeVar("T")
_SIDE_BITS = 20.0  # of a vector, beside its entries: a class, a scale
_OCTAVES, _FINE = 60, 6  # of prices that are searched, and halvings of an octave


@dataclass(frozen=True, slots=True, eq=False)
class Trellis:
    """How to spend bits: ``plan`` (rows, 5) holds, for Gaussian values of unit variance, price of a bit,
    step, class, bits and distortion, prices falling; ``bits`` is log2 of the trellis' states.
    """

    plan: F64
    bits: int

    def code(
        self, rows: F64, weights: F64, price: float, extra: float = 0.0
    ) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.uint8], npt.NDArray[np.float32], F64]:
        """Rank vectors ``rows`` (c, n), whose squared errors count ``weights`` (c,) each, at a ``price``:
        symbols, classes, scales (c,), and what they decode to (c, n). A vector is left out (class 0) where
        its bits, and ``extra`` more, cost more than they save.
        """
        c, n = rows.shape
        k, classes = np.zeros((c, n), np.int16), np.zeros(c, np.uint8)
        scales, out = np.zeros(c, np.float32), np.zeros((c, n))
        power = (rows**2).mean(axis=1) if n else np.zeros(c)
        for i in np.flatnonzero((power > 0) & (weights > 0)):
            own = price / (weights[i] * power[i])
            if not np.isfinite(own) or own > 4 * self.plan[0, 0]:
                continue
            line = self.plan[np.abs(np.log(self.plan[:, 0] / own)).argmin()]
            if own * (n * line[3] + _SIDE_BITS + extra) >= n * (1 - line[4]):
                continue
            unit = float(power[i] ** 0.5 * line[1])
            k[i], levels, classes[i] = quantise(
                rows[i] / unit, line[0] / line[1] ** 2, int(line[2]), self.bits
            )
            if classes[i]:
                level = levels.astype(np.float64)
                scales[i] = np.float32((rows[i] @ level) / (level @ level))
                out[i] = level * np.float64(scales[i])
        return k, classes, scales, out

    def item(
        self,
        shape: tuple[int, ...],
        layout: Layout,
        coded: tuple[npt.NDArray[np.int16], npt.NDArray[np.uint8], npt.NDArray[np.float32], F64],
    ) -> Levels | None:
        """What :meth:`code` found as a tensor of ``shape``; None where all was left out."""
        k, classes, scales, _ = coded
        return Levels(shape, layout, self.bits, classes, scales, k) if classes.any() else None


def meet(top: float, attempt: Callable[[float], tuple[T, bool]]) -> T | None:
    """What ``attempt`` makes at the highest price that it says is good enough, of 2^(1/6) octaves below
    ``top``; None where no price is.
    """
    good: T | None = None
    low, high = -1, _OCTAVES * _FINE  # the last step known to be too dear; the first known to do
    step = 4 * _FINE
    while high - low > 1:
        at = min(low + step, high - 1) if good is None else (low + high) // 2
        made, enough = attempt(top * 2.0 ** (-at / _FINE))
        if enough:
            good, high = made, at
        else:
            low = at
            step *= 2
    return good


def short(mix: F64, error: float) -> F64:
    """``mix`` (rows, columns) rounded to so few bits as hardly add to ``error``: of each row the same number
    behind its largest entry.
    """
    if not mix.size:
        return mix
    bits = int(np.ceil(np.log2(4 / max(error, 1e-9)))) + 1
    exponent = np.frexp(np.abs(mix).max(axis=1, keepdims=True))[1]
    found: F64 = np.ldexp(np.round(np.ldexp(mix, bits - exponent)), exponent - bits)
    return found


def states_for(numel: int) -> int:
    """log2 of the trellis states for so many entries, for the time that a search takes."""
    return 8 if numel <= 200_000 else 6 if numel <= 4_000_000 else 4


def squares(rows: F64) -> F64:
    """``||row||^2`` of each, (c,)."""
    found: F64 = (rows**2).sum(axis=1)
    return found
