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
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from paring import lowrank
from paring.codecs.trellis import Levels
from paring.compress._components import Side, fitted, tensors, weights
from paring.compress._priced import STEPS_PER_OCTAVE, price
from paring.compress._rows import SIDE_BITS, Rest, tables
from paring.compress._trellis import PLAN, Worth, worth
from paring.finetuned.parts import Matrix, Parts
from paring.kernels.trellis import rows

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
#: a step of the price, and how many groups of rows have taken the next
Setting = tuple[int, int]

_OCTAVES = 60
#: log2 of the trellis states by the number of entries: the search takes time in proportion to states
_STATES = ((1_000_000, 8), (4_000_000, 6), (64_000_000, 4), (1 << 62, 3))
#: rows that take the next step of the price together: of about so many entries, this many of a matrix at most
_GROUP, _GROUPS = 1 << 17, 256
#: log2 of the prices that are tried for components, over that of a bit elsewhere
_OFFSETS = (*range(-6, 9), *range(10, 80, 3))
#: a matrix with a smaller side than this is decomposed whole, others until components no longer pay
_WHOLE = 1536


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
    """Deltas at a price of a bit; the dial lowers it by sixteenths of an octave, some rows at a time."""

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
        self._groups = [max(1, min(_GROUPS, m.rows, m.rows * m.columns // _GROUP)) for m in matrices]
        self.dials = _OCTAVES * STEPS_PER_OCTAVE * max(1, sum(self._groups))
        self._chosen = lru_cache(maxsize=64 * max(1, len(matrices)))(self._choose)

    def price(self, step: int) -> float:
        """The price of a bit at a step."""
        return price(self._top, step)

    def settings(self, dial: int) -> list[Setting]:
        """The setting of each matrix at ``dial``."""
        step, ahead = divmod(dial, max(1, sum(self._groups)))
        out = []
        for groups in self._groups:
            mine = min(max(ahead, 0), groups)
            out.append((step + 1, 0) if mine == groups else (step, mine))
            ahead -= groups
        return out

    def expected(self, dial: int) -> tuple[float, float]:
        """The bytes of all matrices at ``dial`` and the squared error, nearly; nothing is coded for it."""
        bits = lost = 0.0
        for index, (step, ahead) in enumerate(self.settings(dial)):
            share = ahead / self._groups[index]
            choice = self._chosen(index, step)
            bits, lost = bits + (1 - share) * choice.bits, lost + (1 - share) * choice.lost
            if ahead:
                choice = self._chosen(index, step + 1)
                bits, lost = bits + share * choice.bits, lost + share * choice.lost
        return bits / 8, lost

    def _choose(self, index: int, step: int) -> _Choice:
        part, price, best = self._parts[index], self.price(step), None
        n, table, least = part.matrix.columns, tables()[1], np.inf
        for octave in _OFFSETS:
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
            coded = n * table.bits[where] + SIDE_BITS * (table.bits[where] > 0)
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

    def code(self, index: int, setting: Setting) -> Parts:
        """One delta at its setting."""
        part, (step, ahead) = self._parts[index], setting
        a, b = self._components(part, self._chosen(index, step).at)
        parts = Parts(part.matrix, a, b, None, None)
        first = part.matrix.rows * ahead // self._groups[index]
        rest = Rest(part.matrix, parts, (self.price(step + 1), self.price(step)), first, self._bits)
        return Parts(part.matrix, a, b, *rest.code())

    def _components(self, part: _Part, at: npt.NDArray[np.int64]) -> tuple[Levels | None, Levels | None]:
        """The factors of the components that are worth it."""
        of_u, of_v = part.worth.of_u[at], part.worth.of_v[at]
        kept = int((of_v >= 0).sum())
        if not kept:
            return None, None
        V, right = part.V, part.s[:, None] * part.U.T
        u, v = (Side(size, of[:kept], self._bits) for size, of in ((len(part.U), of_u), (V.shape[1], of_v)))
        _side(v, V[:kept])
        _side(u, fitted(v.levels, right, V))
        scale = weights(u.levels, v.levels, part.U, part.s, V)
        distortion = PLAN[of_u[:kept], 4] + PLAN[of_v[:kept], 4]
        return tensors(u, v, scale, distortion, ((kept, V.shape[1]), (len(part.U), kept)))


def _side(side: Side, targets: npt.NDArray[np.floating[Any]]) -> None:
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
