"""Modules with their rank vectors in order, and codings that keep some of them: for truncate and slim."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from paring import lowrank
from paring.coding import Coded, Factors, Item
from paring.dtypes import Stored, from_f32, itemsize
from paring.errors import UnsupportedError

F64 = npt.NDArray[np.float64]

DTYPES = {"fp16": "F16", "bf16": "BF16", "fp32": "F32"}
#: what rounding to a dtype may do to the balanced gauge: cosines of rank vectors, differences of norms
_ROUNDING = {"F64": 1e-6, "F32": 1e-6, "F16": 1e-3, "BF16": 8e-3}


@dataclass(frozen=True, eq=False)
class Part:
    """A module's rank vectors in the order in which they are kept: A ``(r, in)``, B ``(out, r)``.

    ``lost`` ``(r + 1,)`` is the squared norm of what is lost of ``scale * B @ A`` by keeping the first 0, 1,
    ... r of them.
    """

    factors: Factors
    A: npt.NDArray[Any]
    B: npt.NDArray[Any]
    lost: F64

    @property
    def rank(self) -> int:
        return len(self.A)

    @property
    def energy(self) -> float:
        """The squared norm of the update."""
        return float(self.lost[0])

    @property
    def gains(self) -> F64:
        """What each rank vector adds ``(r,)``, made to fall."""
        gains: F64 = np.minimum.accumulate(np.maximum(self.lost[:-1] - self.lost[1:], 0.0))
        return gains


def parts(modules: Sequence[Factors], gauge: str, threads: int) -> tuple[list[Part], list[Factors]]:
    """The modules with ranks, in ``gauge`` (svd or trained), and the vectors, which have none.

    Raises UnsupportedError when there are no ranks at all.
    """
    pairs = [factors for factors in modules if factors.b is not None]
    if not pairs:
        raise UnsupportedError("(IA)^3 vectors have no ranks to cut: take compeft, spectral or lossless")
    with ThreadPoolExecutor(threads) as pool:
        made = list(pool.map(lambda factors: _part(factors, gauge), pairs))
    return made, [factors for factors in modules if factors.b is None]


def _part(factors: Factors, gauge: str) -> Part:
    A, B = factors.A.astype(np.float64), factors.B.astype(np.float64)
    of_a, of_b = A @ A.T, B.T @ B
    square = factors.scale**2
    if gauge == "trained":
        both = of_a * of_b
        # the sums over both indices from k on
        corner = both[::-1, ::-1].cumsum(axis=0).cumsum(axis=1)[::-1, ::-1].diagonal()
        return Part(factors, factors.A, factors.B, square * np.append(np.maximum(corner, 0.0), 0.0))
    if _balanced(of_a, of_b, max(_ROUNDING.get(dtype, 0.0) for dtype in factors.dtypes)):
        s = np.sqrt(of_a.diagonal() * of_b.diagonal())
        return Part(factors, factors.A, factors.B, square * _tails(s))
    A, B = lowrank.balanced(factors.A, factors.B)
    return Part(factors, A, B, square * _tails(np.sqrt((A**2).sum(axis=1) * (B**2).sum(axis=0))))


def _tails(s: F64) -> F64:
    return np.append(np.cumsum((s**2)[::-1])[::-1], 0.0)


def _balanced(of_a: F64, of_b: F64, rounding: float) -> bool:
    """Whether factors with these Gram matrices are in the balanced gauge, as near as their dtype holds it."""
    for gram in (of_a, of_b):
        norms = np.sqrt(gram.diagonal())
        apart = np.abs(gram - np.diag(gram.diagonal()))
        if (apart > rounding * np.outer(norms, norms)).any():
            return False
    a, b = of_a.diagonal(), of_b.diagonal()
    return bool((np.abs(a - b) <= rounding * (a + b)).all() and (a[1:] <= a[:-1] * (1 + 2 * rounding)).all())


def kept(part: Part, which: npt.NDArray[np.int64], store: str) -> list[tuple[str, Stored]]:
    """The tensors a and b with the rank vectors ``which (k,)`` alone, in the dtype ``store`` or, with
    ``source``, their own; nothing where there are none. Raises BadValueError where that overflows.
    """
    if not len(which):
        return []
    factors = part.factors
    assert factors.b is not None, "a pair of factors"
    shape_a, shape_b = factors.shapes
    dtypes = [DTYPES.get(store, own) for own in factors.dtypes]
    A = part.A[which].reshape(len(which), *shape_a[1:])
    B = part.B[:, which].reshape(shape_b[0], len(which), *shape_b[2:])
    return [
        (factors.a, from_f32(A, dtypes[0], factors.a)),
        (factors.b, from_f32(np.ascontiguousarray(B), dtypes[1], factors.b)),
    ]


def bytes_of(part: Part, store: str) -> int:
    """Bytes that one rank vector takes, both its sides."""
    dtypes = [DTYPES.get(store, own) for own in part.factors.dtypes]
    n_in, n_out = part.A.shape[1], len(part.B)
    return int(n_in * itemsize(dtypes[0]) + n_out * itemsize(dtypes[1]))


def whole(vectors: Sequence[Factors]) -> list[tuple[str, Stored]]:
    """(IA)^3 vectors as they are."""
    return [
        (f.a, from_f32((f.A.astype(np.float64) + 1.0).reshape(f.shapes[0]), f.dtypes[0], f.a))
        for f in vectors
    ]


class Fixed:
    """The family of one coding."""

    dials, scan = 1, 0
    turns: tuple[int, ...] = ()
    fixed: int | None = 0

    def __init__(self, tensors: dict[str, Item]) -> None:
        self._coded = Coded(tensors)

    def encode(self, dial: int) -> Coded:
        return self._coded
