"""The family behind :mod:`paring.compress.spectral`."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from paring import lowrank
from paring.codecs.trellis import Levels
from paring.coding import Factors
from paring.compress._priced import Priced
from paring.compress._trellis import PLAN, Worth, worth
from paring.kernels.ternary.tensor import segments
from paring.kernels.trellis.tensor import quantise

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
Real = npt.NDArray[np.floating[Any]]

_OCTAVES = 60
#: log2 of the trellis states by the number of entries: the search takes time in proportion to states
_STATES = ((4_000_000, 8), (16_000_000, 6), (1 << 62, 4))


@dataclass(frozen=True, eq=False)
class _Components:
    """A module's update ``scale * B @ A = U diag(s) V``: U (out, c), s (c,), V (c, in)."""

    factors: Factors
    U: F32
    s: F64
    V: F32
    worth: Worth


def _components(factors: Factors, device: str) -> _Components:
    U, s, V = lowrank.components(factors.A, factors.B * np.float32(factors.scale), device)
    return _Components(factors, U, s, V, worth(len(U) if factors.b else 0, V.shape[1]))


class Spectral(Priced):
    """Singular components at a price of a bit; ``sketch`` tells size and loss from tables alone."""

    def __init__(
        self, modules: Sequence[Factors], states: int, norm: float, threads: int, device: str
    ) -> None:
        with ThreadPoolExecutor(threads) as pool:
            self._parts = list(pool.map(lambda factors: _components(factors, device), modules))
        numel = sum(factors.numel for factors in modules)
        self._bits = states.bit_length() - 1 if states else next(b for most, b in _STATES if numel <= most)
        self._norm = norm
        self._energy = sum(float((part.s**2).sum()) for part in self._parts)
        top = max((float(part.s[0]) ** 2 for part in self._parts if len(part.s)), default=0.0) or 1.0
        vectors = sum(len(part.s) for part in self._parts)
        super().__init__(len(modules), self._encode, top, _OCTAVES, 64 if vectors < 1000 else 0, threads)

    def sketch(self, dial: int) -> tuple[float, float]:
        """The bytes of entries and the relative error to be expected at ``dial``."""
        bits = lost = 0.0
        for part, step in zip(self._parts, self.steps(dial), strict=True):
            at = part.worth.at(part.s**2, self.price(step))
            bits += float(part.worth.bits[at].sum())
            lost += float((part.worth.lost[at] * part.s**2).sum())
        return bits / 8, (lost / self._energy) ** 0.5 if self._energy else 0.0

    def _encode(self, index: int, price: float) -> list[tuple[str, Levels]]:
        part = self._parts[index]
        factors, at = part.factors, part.worth.at(part.s**2, price)
        of_u, of_v = part.worth.of_u[at], part.worth.of_v[at]
        kept = int((of_v >= 0).sum())  # the strongest ones
        V, right = part.V, part.s[:, None] * part.U.T
        u, v = _Side(len(part.U), of_u[:kept], self._bits), _Side(V.shape[1], of_v[:kept], self._bits)
        v.code(V[:kept])
        if factors.b is None:
            scale = self._scales(np.ones((kept, 1)), v.levels, part)
            return [(factors.a, _tensor(factors.shapes[0], "whole", v, scale != 0, scale))]
        u.code(_fitted(v.levels, right, V))
        scale = self._scales(u.levels, v.levels, part)
        return _items(factors, u, v, scale, PLAN[of_u[:kept], 4] + PLAN[of_v[:kept], 4])

    def _scales(self, u: F64, v: F64, part: _Components) -> F64:
        """The weights g (c,) for which ``sum_c g_c u_c v_c`` is nearest to the update; then some of the norm
        that it lacks is given back.
        """
        gram = (u @ u.T) * (v @ v.T)
        gram[np.diag_indices_from(gram)] += 1e-12 * np.trace(gram) / max(1, len(gram)) + 1e-300
        right = ((u @ part.U) * part.s * (v @ part.V.T)).sum(axis=1)
        nearest: F64 = np.linalg.solve(gram, right)
        energy, kept = float((part.s**2).sum()), float(nearest @ gram @ nearest)
        return nearest * (energy / kept) ** (self._norm / 2) if kept > 0 else nearest


class _Side:
    """One side's rank vectors, (c, n): what becomes of them on the trellis."""

    def __init__(self, n: int, rows: npt.NDArray[np.int64], bits: int) -> None:
        self.rows, self.bits = rows, bits
        self.k = np.zeros((len(rows), n), np.int16)
        self.levels = np.zeros(self.k.shape)
        self.classes = np.zeros(len(rows), np.uint8)

    def code(self, targets: Real) -> None:
        """Quantise the rank vectors ``targets`` (c, n), each in units of its own size."""
        for c, row in enumerate(self.rows):
            price, step, cls = PLAN[row, :3]
            size = float(np.sqrt(np.mean(targets[c] ** 2)))
            if size == 0:
                self.levels[c], self.classes[c] = 0, 0
                continue
            self.k[c], self.levels[c], self.classes[c] = quantise(
                targets[c] / (size * step), price / step**2, int(cls), self.bits
            )


def _fitted(levels: F64, mine: Real, theirs: Real) -> F64:
    """The rank vectors (c, n) that fit best beside ``levels`` (c, m) of the other side, least squares.

    The update is ``theirs.T @ mine`` with ``mine`` (r, n), ``theirs`` (r, m).
    """
    gram = levels @ levels.T
    gram[np.diag_indices_from(gram)] += 1e-9 * np.trace(gram) / max(1, len(gram)) + 1e-300
    fitted: F64 = np.linalg.solve(gram, levels @ theirs.T) @ mine
    return fitted


def _items(factors: Factors, u: _Side, v: _Side, scale: F64, distortion: F64) -> list[tuple[str, Levels]]:
    """The tensors a and b; the module's own scale is taken out of them."""
    used = (u.classes > 0) & (v.classes > 0) & (scale != 0)
    whole = np.where(used, scale, 0.0) / (factors.scale or 1.0)
    norms = [np.sqrt(np.maximum((side.levels**2).sum(axis=1), 1.0)) for side in (u, v)]
    root = np.sqrt(np.abs(np.where(used, whole, 1.0)) * norms[1] / norms[0])
    of_u = 2.0 ** np.round(np.log2(root))
    of_v = _short(whole / of_u, distortion)
    a = _tensor(factors.shapes[0], "rows", v, used, of_v)
    assert factors.b is not None
    return [(factors.a, a), (factors.b, _tensor(factors.shapes[1], "columns", u, used, of_u))]


def _tensor(
    shape: tuple[int, ...], layout: Any, side: _Side, used: npt.NDArray[np.bool_], scale: F64
) -> Levels:
    """A side as a tensor of ``shape``: its rank vectors first, zeros behind them."""
    count, n = segments(shape, layout)
    k = np.zeros((count, n), np.int16)
    classes, scales = np.zeros(count, np.uint8), np.zeros(count, np.float32)
    at = np.flatnonzero(used)
    k[: len(at)] = side.k[at]
    classes[: len(at)], scales[: len(at)] = side.classes[at], scale[at]
    return Levels(shape, layout, side.bits, classes, scales, k)


def _short(x: F64, distortion: F64) -> F64:
    """``x`` rounded to so few bits behind the leading one as hardly add to ``distortion``, at least three."""
    bits = np.ceil(np.maximum(3, np.log2(4.2 / np.maximum(distortion, 1e-9)) / 2)).astype(int)
    mantissa, exponent = np.frexp(x)
    short: F64 = np.ldexp(np.round(np.ldexp(mantissa, bits + 1)), exponent - bits - 1)
    return short
