"""What the components of a delta leave, entry by entry: nothing, signs or levels, row by row."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr

from paring.codecs.ternary import Ternary, from_trits
from paring.codecs.trellis import Levels
from paring.coding import rounded
from paring.compress._components import short
from paring.compress._trellis import PLAN
from paring.finetuned.parts import Matrix, Parts
from paring.kernels.trellis import rows

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]

#: bits beside the entries that a coded row takes: its class and, at times, a scale
SIDE_BITS = 6.0
#: bits of the scales of signs
_BITS = 5
#: bits that a scale of its own takes
_SCALE_BITS = 10.0
#: the step of levels over the root of the price, which is best at all but the lowest rates
_STEP = 1.7
_BLOCK = 1 << 20  # entries that are worked on at once
_FINE = 16  # entries of tables an octave
_LOWEST, _HIGHEST = -4, 44  # log2 of the variance over the price, in tables


@dataclass(frozen=True, eq=False)
class Table:
    """What Gaussian entries of unit variance take and lose, by ``log2(variance / price)`` in sixteenths,
    (t,).
    """

    bits: F64
    lost: F64
    plan: npt.NDArray[np.int64]  #: the row of PLAN, where levels are taken

    def at(self, variances: F64, price: float) -> npt.NDArray[np.int64]:
        """Where in the tables rows of these ``variances`` (n,) are at ``price``, (n,)."""
        with np.errstate(divide="ignore"):
            places = np.round(_FINE * (np.log2(variances / price) - _LOWEST))
        found: npt.NDArray[np.int64] = np.clip(places, 0, len(self.bits) - 1).astype(np.int64)
        return found


@cache
def tables() -> tuple[Table, Table]:
    """Levels alone, and whichever of levels, signs and nothing costs least."""
    prices = 2.0 ** -(np.arange((_HIGHEST - _LOWEST) * _FINE) / _FINE + _LOWEST)
    rated = PLAN[:, 4] + prices[:, None] * PLAN[:, 3]
    plan = rated.argmin(axis=1)
    levels = Table(PLAN[plan, 3], PLAN[plan, 4], plan)
    t = np.linspace(0.3, 5.5, 521)
    p = 2 * (1 - ndtr(t))
    mean = 2 * np.exp(-t * t / 2) / np.sqrt(2 * np.pi) / p
    lost, bits = 1 - p * mean**2, -p * np.log2(p) - (1 - p) * np.log2(1 - p) + p
    signs = (lost + prices[:, None] * bits).argmin(axis=1)
    bits, lost = np.append(bits, 0.0), np.append(lost, 1.0)
    signs = np.where(lost[signs] + prices * bits[signs] < 1, signs, len(bits) - 1)
    better = rated[np.arange(len(prices)), plan] < lost[signs] + prices * bits[signs]
    whole = Table(
        np.where(better, levels.bits, bits[signs]), np.where(better, levels.lost, lost[signs]), plan
    )
    return levels, whole


class Rest:
    """What the components of one delta leave, coded row by row, some rows at a time."""

    def __init__(
        self, matrix: Matrix, parts: Parts, prices: tuple[float, float], first: int, bits: int
    ) -> None:
        self._matrix, self._parts, self._prices, self._bits = matrix, parts, prices, bits
        self._first = first
        count = matrix.rows
        cuts = sorted({first, *(edge for block in matrix.blocks(_BLOCK) for edge in block)})
        self._blocks = list(pairwise(cuts))
        self._classes, self._steps = np.zeros(count, np.uint8), np.zeros(count)
        self._kept, self._mean = np.zeros(count, np.int64), np.zeros(count)

    def code(self) -> tuple[Levels | None, Ternary | None]:
        """The rows that are levels, and those that are signs, ``(rows, columns)`` each; None without any."""
        inner = norm = 0.0
        found = []
        for start, stop in self._blocks:
            k, products = self._block(start, stop)
            found.append(k)
            inner, norm = inner + products[0], norm + products[1]
        shape = (self._matrix.rows, self._matrix.columns)
        levels = None
        if self._classes.any():
            scale = short(self._steps * (inner / norm if norm else 1.0), np.full(len(self._steps), 1e-4))
            used = self._classes > 0
            k = np.concatenate(found) if len(found) > 1 else found[0]
            scales = np.where(used, scale, 0).astype(np.float32)
            levels = Levels(shape, "rows", self._bits, self._classes, scales, k)
        return levels, self._signs(shape)

    def _price(self, row: int) -> float:
        """Of a bit: the first rows are a step ahead."""
        return self._prices[0] if row < self._first else self._prices[1]

    def _left(self, start: int, stop: int) -> F32:
        """Rows of what the components leave."""
        D = self._matrix.read(start, stop)
        return D - self._parts.block(start, stop).astype(np.float32) if self._parts.a is not None else D

    def _block(self, start: int, stop: int) -> tuple[npt.NDArray[np.int16], tuple[float, float]]:
        """Choose for rows ``start:stop``; the symbols of those on the trellis, and their products with what
        they stand for and with themselves.
        """
        left, price, here = self._left(start, stop), self._price(start), slice(start, stop)
        wide = left.astype(np.float64)
        n, energies = left.shape[1], (wide**2).sum(axis=1)
        table = tables()[0]
        kept, mean, _, cost = rows.largest(left, price, side=SIDE_BITS)
        at = table.at(energies / n, price)
        rated = energies * table.lost[at] + price * (n * table.bits[at] + SIDE_BITS)
        graded = (rated < cost) & (rated < energies)
        self._kept[here], self._mean[here] = np.where(graded, 0, kept), mean
        # a trellis has levels up to some 7 bits: of rows that would need more, all get a wider step
        widest = PLAN[-1, 1] * np.sqrt(energies / n)
        steps = np.maximum(_STEP * price**0.5, widest)
        prices = np.where(steps > widest, price, steps**2 / _STEP**2)
        classes = np.where(graded, PLAN[table.plan[at], 2], 0).astype(np.uint8)
        k = rows.quantise(wide, prices, steps, classes, self._bits)
        self._classes[here], self._steps[here] = classes, np.where(classes > 0, steps, 0.0)
        made = rows.levels(k, classes, self._bits) * steps[:, None]
        return k, (float((made * wide).sum()), float((made * made).sum()))

    def _signs(self, shape: tuple[int, int]) -> Ternary | None:
        """The rows that are signs of their largest entries: with one scale, or their own where that pays."""
        total = int(self._kept.sum())
        if not total:
            return None
        common = float(rounded(np.array([float((self._kept * self._mean).sum()) / total]), _BITS)[0])
        own = self._kept * (self._mean - common) ** 2 > _SCALE_BITS * self._prices[1]
        scale = np.where(own, rounded(self._mean, _BITS), common)
        trits = np.zeros(shape, np.int8)
        for start, stop in self._blocks:
            chosen = start + np.flatnonzero(self._kept[start:stop])
            if not len(chosen):
                continue
            left = self._left(start, stop)
            for each, fixed in ((chosen[own[chosen]], 0.0), (chosen[~own[chosen]], common)):
                rest = left[each - start]
                _, _, threshold, _ = rows.largest(rest, self._price(start), fixed, SIDE_BITS)
                trits[each] = np.sign(rest) * (np.abs(rest) >= threshold[:, None])
        return from_trits(trits, np.where(trits.any(axis=1), scale, 0.0), "rows")
