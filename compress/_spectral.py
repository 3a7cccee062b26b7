"""The family behind :mod:`paring.compress.spectral`."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from paring import lowrank
from paring.codecs.trellis import Levels
from paring.coding import Factors
from paring.compress._components import Side, fitted, tensor, tensors, weights
from paring.compress._priced import Priced
from paring.compress._trellis import PLAN, Worth, worth

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]

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
        u, v = Side(len(part.U), of_u[:kept], self._bits), Side(V.shape[1], of_v[:kept], self._bits)
        v.code(V[:kept])
        if factors.b is None:
            scale = weights(np.ones((kept, 1)), v.levels, part.U, part.s, V, self._norm)
            return [(factors.a, tensor(factors.shapes[0], "whole", v, scale != 0, scale))]
        u.code(fitted(v.levels, right, V))
        scale = weights(u.levels, v.levels, part.U, part.s, V, self._norm)
        distortion = PLAN[of_u[:kept], 4] + PLAN[of_v[:kept], 4]
        a, b = tensors(u, v, scale, distortion, factors.shapes, factors.scale)
        return [(factors.a, a), (factors.b, b)]
