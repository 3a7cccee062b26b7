"""What spectral coding makes of the delta of a full fine-tune: leading components, and what they leave.

A delta D is a few components that stand out of a floor of noise. The components are coded as those of
adapters are. What they leave is coded entry by entry, a row (one output) at a time, at the same price of a
bit: nothing, or the signs of its largest entries times one scale, or levels on the trellis, whichever has
least error plus price of its bits.

Where rows are coded, not all of the error that a component takes away is worth having: the rows would have
done without it, at some bits more. So components are coded at a price of their own, at least that of a bit;
the one of least total cost is looked for, on tables.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr

from paring import lowrank
from paring.codecs.ternary import Ternary, from_trits
from paring.codecs.trellis import Levels
from paring.coding import Factors
from paring.compress._priced import STEPS_PER_OCTAVE
from paring.compress._spectral import _fitted, _items, _short, _Side
from paring.compress._trellis import PLAN, Worth, worth
from paring.finetuned.parts import Matrix, Parts
from paring.kernels.trellis import rows

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]

_OCTAVES = 60
#: log2 of the trellis states by the number of entries: the search takes time in proportion to states
_STATES = ((1_000_000, 8), (4_000_000, 6), (64_000_000, 4), (1 << 62, 3))
#: bits beside the entries that a coded row takes: its class and, at times, a scale
_SIDE_BITS = 6.0
#: bits that a scale of its own takes
_SCALE_BITS = 10.0
#: the step of levels over the root of the price, which is best at all but the lowest rates
_STEP = 1.7
_BLOCK = 1 << 20  # entries that are worked on at once
_FINE = 16  # entries of tables an octave
_LOWEST, _HIGHEST = -4, 44  # log2 of the variance over the price, in tables
#: a matrix with a smaller side than this is decomposed whole, others until components no longer pay
_WHOLE = 1536


@dataclass(frozen=True, eq=False)
class _Table:
    """What Gaussian entries of unit variance take and lose, by ``log2(variance / price)`` in sixteenths."""

    bits: F64
    lost: F64
    plan: npt.NDArray[np.int64]  #: the row of PLAN, where levels are taken

    def at(self, variances: F64, price: float) -> npt.NDArray[np.int64]:
        with np.errstate(divide="ignore"):
            places = np.round(_FINE * (np.log2(variances / price) - _LOWEST))
        found: npt.NDArray[np.int64] = np.clip(places, 0, len(self.bits) - 1).astype(np.int64)
        return found


@cache
def _tables() -> tuple[_Table, _Table]:
    """Levels alone, and whichever of levels, signs and nothing costs least."""
    prices = 2.0 ** -(np.arange((_HIGHEST - _LOWEST) * _FINE) / _FINE + _LOWEST)
    rated = PLAN[:, 4] + prices[:, None] * PLAN[:, 3]
    plan = rated.argmin(axis=1)
    levels = _Table(PLAN[plan, 3], PLAN[plan, 4], plan)
    t = np.linspace(0.3, 5.5, 521)
    p = 2 * (1 - ndtr(t))
    mean = 2 * np.exp(-t * t / 2) / np.sqrt(2 * np.pi) / p
    lost, bits = 1 - p * mean**2, -p * np.log2(p) - (1 - p) * np.log2(1 - p) + p
    signs = (lost + prices[:, None] * bits).argmin(axis=1)
    bits, lost = np.append(bits, 0.0), np.append(lost, 1.0)
    signs = np.where(lost[signs] + prices * bits[signs] < 1, signs, len(bits) - 1)
    better = rated[np.arange(len(prices)), plan] < lost[signs] + prices * bits[signs]
    whole = _Table(
        np.where(better, levels.bits, bits[signs]), np.where(better, levels.lost, lost[signs]), plan
    )
    return levels, whole


@dataclass(frozen=True, eq=False)
class _Part:
    """A delta: components that may pay, ``U (rows, c)``, s, ``V (c, columns)``; the energies of its rows."""

    matrix: Matrix
    U: F32
    s: F64
    V: F32
    energies: F64
    worth: Worth


@dataclass(frozen=True, slots=True, eq=False)
class _Choice:
    """At a price of a bit: the components' place in their tables, and what is expected of all."""

    at: npt.NDArray[np.int64]
    bits: float
    lost: float


class Deltas:
    """Deltas at a price of a bit; the dial lowers it, a sixteenth of an octave and a matrix at a time."""

    turns: tuple[int, ...] = ()
    fixed: int | None = None
    scan = 0

    def __init__(self, matrices: Sequence[Matrix], states: int, threads: int) -> None:
        self.matrices = matrices
        with ThreadPoolExecutor(threads) as pool:
            self._parts = list(pool.map(_decomposed, matrices))
        entries = sum(matrix.rows * matrix.columns for matrix in matrices)
        self._bits = states.bit_length() - 1 if states else next(b for most, b in _STATES if entries <= most)
        tops = [float(found.max(initial=0)) for p in self._parts for found in (p.energies, p.s**2)]
        self._top = max(tops, default=0.0) or 1.0
        self.energy = sum(float(part.energies.sum()) for part in self._parts)
        self.dials = _OCTAVES * STEPS_PER_OCTAVE * max(1, len(matrices))
        self._chosen = lru_cache(maxsize=64 * max(1, len(matrices)))(self._choose)

    def price(self, step: int) -> float:
        """The price of a bit at a step."""
        return float(self._top * 2.0 ** (-step / STEPS_PER_OCTAVE))

    def steps(self, dial: int) -> list[int]:
        """The step of each matrix at ``dial``."""
        step, ahead = divmod(dial, max(1, len(self.matrices)))
        return [step + (index < ahead) for index in range(len(self.matrices))]

    def expected(self, dial: int) -> tuple[float, float]:
        """The bytes of all matrices at ``dial`` and the squared error, nearly; nothing is coded for it."""
        found = [self._chosen(index, step) for index, step in enumerate(self.steps(dial))]
        return sum(choice.bits for choice in found) / 8, sum(choice.lost for choice in found)

    def _choose(self, index: int, step: int) -> _Choice:
        part, price, best = self._parts[index], self.price(step), None
        n, table, least = part.matrix.columns, _tables()[1], np.inf
        for octave in range(12):
            at = part.worth.at(part.s**2, price * 2.0**octave)
            kept = int((part.worth.of_v[at] >= 0).sum())
            bits = float(part.worth.bits[at].sum())
            # error of v falls where u is, that of u on all rows alike
            lost_u, lost_v = (PLAN[of[at][:kept], 4] for of in (part.worth.of_u, part.worth.of_v))
            held = part.s[:kept] ** 2 * (1 - lost_v)
            gone = (part.U[:, :kept] ** 2) @ held.astype(np.float32)
            spread = float((held * lost_u).sum()) / max(1, len(part.U))
            energies = np.maximum(part.energies - gone, 0.0) + spread
            where = table.at(energies / n, price)
            coded = n * table.bits[where] + _SIDE_BITS * (table.bits[where] > 0)
            left = energies * table.lost[where]
            coded = np.where(left + price * coded < energies, coded, 0.0)
            left = np.where(coded > 0, left, energies)
            choice = _Choice(at, bits + float(coded.sum()), float(left.sum()))
            if choice.lost + price * choice.bits < least:
                best, least = choice, choice.lost + price * choice.bits
            if not kept:
                break
        assert best is not None
        return best

    def code(self, index: int, step: int) -> Parts:
        """One delta at the price of ``step``."""
        part, price = self._parts[index], self.price(step)
        a, b = self._components(part, self._chosen(index, step).at)
        parts = Parts(part.matrix, a, b, None, None)
        rest = _Rest(part.matrix, parts, price, self._bits)
        return Parts(part.matrix, a, b, *rest.code())

    def _components(self, part: _Part, at: npt.NDArray[np.int64]) -> tuple[Levels | None, Levels | None]:
        """The factors of the components that are worth it."""
        of_u, of_v = part.worth.of_u[at], part.worth.of_v[at]
        kept = int((of_v >= 0).sum())
        if not kept:
            return None, None
        V, right = part.V, part.s[:, None] * part.U.T
        u, v = (_Side(size, of[:kept], self._bits) for size, of in ((len(part.U), of_u), (V.shape[1], of_v)))
        _side(v, V[:kept])
        _side(u, _fitted(v.levels, right, V))
        gram = (u.levels @ u.levels.T) * (v.levels @ v.levels.T)
        gram[np.diag_indices_from(gram)] += 1e-12 * np.trace(gram) / len(gram) + 1e-300
        scale = np.linalg.solve(gram, ((u.levels @ part.U) * part.s * (v.levels @ part.V.T)).sum(axis=1))
        shapes = ((kept, V.shape[1]), (len(part.U), kept))
        factors = Factors("", "a", "b", V, part.U, 1.0, ("F32", "F32"), shapes)
        found = dict(_items(factors, u, v, scale, PLAN[of_u[:kept], 4] + PLAN[of_v[:kept], 4]))
        return found["a"], found["b"]


def _side(side: _Side, targets: npt.NDArray[np.floating[Any]]) -> None:
    """Quantise the rank vectors ``targets`` (c, n), each in units of its own size."""
    size = np.sqrt(np.mean(np.square(targets, dtype=np.float64), axis=1))
    steps = size * PLAN[side.rows, 1]
    side.classes = np.where(size > 0, PLAN[side.rows, 2], 0).astype(np.uint8)
    prices = PLAN[side.rows, 0] * size**2
    side.k = rows.quantise(np.asarray(targets, np.float64), prices, steps, side.classes, side.bits)
    side.levels = rows.levels(side.k, side.classes, side.bits).astype(np.float64)


def _decomposed(matrix: Matrix) -> _Part:
    """The components of a delta that may pay at some price, and the energies of its rows."""
    D = matrix.dense()
    energies = np.array([float(np.vdot(row, row)) for row in (line.astype(np.float64) for line in D)])
    least = min(D.shape)
    values = worth(*D.shape)
    if least < 4:
        return _Part(matrix, D[:, :0], np.zeros(0), D[:0], energies, values)
    most = max(least // 2, min(least, 64)) if least <= _WHOLE else 64
    while True:
        U, s, V = lowrank.leading(D, rank=most)
        count = _paying(s, float(energies.sum()), D.size, values)
        if count < len(s) or most >= least // 4:
            break
        most = min(2 * most, least // 4)
    return _Part(
        matrix, np.ascontiguousarray(U[:, :count], np.float32), s[:count],
        np.ascontiguousarray(V[:count], np.float32), energies, values,
    )  # fmt: skip


def _paying(s: F64, energy: float, entries: int, values: Worth) -> int:
    """How many components are worth bits when all that they leave is coded, too: then an entry of variance v
    does without a share of it at ``2 ln 2 v`` a bit.
    """
    left = np.maximum(energy - np.cumsum(s**2), 1e-14 * energy) / entries
    pays = np.array(
        [values.of_v[values.at(s[c : c + 1] ** 2, 1.386 * left[c])][0] >= 0 for c in range(len(s))]
    )
    return int(np.flatnonzero(pays).max(initial=-1)) + 1


class _Rest:
    """What the components of one delta leave, coded row by row, some rows at a time."""

    def __init__(self, matrix: Matrix, parts: Parts, price: float, bits: int) -> None:
        self._matrix, self._parts, self._price, self._bits = matrix, parts, price, bits
        count, n = matrix.rows, matrix.columns
        self._blocks = matrix.blocks(_BLOCK)
        self._classes, self._steps = np.zeros(count, np.uint8), np.zeros(count)
        self._k = np.zeros((0, n), np.int16)
        self._kept, self._mean = np.zeros(count, np.int64), np.zeros(count)

    def code(self) -> tuple[Levels | None, Ternary | None]:
        inner = norm = 0.0
        found = []
        for start, stop in self._blocks:
            k, products = self._block(start, stop)
            found.append(k)
            inner, norm = inner + products[0], norm + products[1]
        shape = (self._matrix.rows, self._matrix.columns)
        levels = None
        if self._classes.any():
            scale = _short(self._steps * (inner / norm if norm else 1.0), np.full(len(self._steps), 1e-4))
            used = self._classes > 0
            k = np.concatenate(found) if len(found) > 1 else found[0]
            scales = np.where(used, scale, 0).astype(np.float32)
            levels = Levels(shape, "rows", self._bits, self._classes, scales, k)
        return levels, self._signs(shape)

    def _left(self, start: int, stop: int) -> F32:
        """Rows of what the components leave."""
        D = self._matrix.read(start, stop)
        return D - self._parts.block(start, stop).astype(np.float32) if self._parts.a is not None else D

    def _block(self, start: int, stop: int) -> tuple[npt.NDArray[np.int16], tuple[float, float]]:
        """Choose for rows ``start:stop``; the symbols of those on the trellis, and their products with what
        they stand for and with themselves.
        """
        left, price, here = self._left(start, stop), self._price, slice(start, stop)
        wide = left.astype(np.float64)
        n, energies = left.shape[1], (wide**2).sum(axis=1)
        table = _tables()[0]
        kept, mean, _, cost = rows.largest(left, price, side=_SIDE_BITS)
        at = table.at(energies / n, price)
        rated = energies * table.lost[at] + price * (n * table.bits[at] + _SIDE_BITS)
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
        common = float(_brief(np.array([float((self._kept * self._mean).sum()) / total]))[0])
        own = self._kept * (self._mean - common) ** 2 > _SCALE_BITS * self._price
        scale = np.where(own, _brief(self._mean), common)
        trits = np.zeros(shape, np.int8)
        for start, stop in self._blocks:
            chosen = start + np.flatnonzero(self._kept[start:stop])
            if not len(chosen):
                continue
            left = self._left(start, stop)
            for each, fixed in ((chosen[own[chosen]], 0.0), (chosen[~own[chosen]], common)):
                rest = left[each - start]
                _, _, threshold, _ = rows.largest(rest, self._price, fixed, _SIDE_BITS)
                trits[each] = np.sign(rest) * (np.abs(rest) >= threshold[:, None])
        return from_trits(trits, np.where(trits.any(axis=1), scale, 0.0), "rows")


def _brief(x: F64) -> F64:
    """``x`` rounded to five bits."""
    mantissa, exponent = np.frexp(x)
    brief: F64 = np.ldexp(np.round(np.ldexp(mantissa, 5)), exponent - 5)
    return brief
