"""An adapter as what a related one decodes to, and what is left, within an error of its updates.

The gauge is free where only the update counts: the new adapter is turned so that its one side lies as near
as it can to that of the other adapter *as decoded*, so that what the first coding lost is not coded again
where the error allows it. Then what is left of that side is coded, the other side is fitted to what became
of it, and what is left of that is coded, every rank vector at one price of a bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from paring.codecs.residual import Difference, predicted
from paring.coding import Factors
from paring.dtypes import Stored
from paring.kernels.ternary.tensor import Layout
from paring.kernels.trellis.tensor import Levels
from paring.pooling.pricing import F64, Trellis, squares

_WEAK = 1e-3  # singular values below this part of the largest are no direction to turn to


@dataclass(frozen=True, slots=True, eq=False)
class Base:
    """Tensors of the file that a module is told by: A's and B's number and what they decode to."""

    number_a: int
    a: Stored
    number_b: int
    b: Stored


@dataclass(frozen=True, slots=True, eq=False)
class _Side:
    """One side of a module: its rank vectors (r, n), and those of its reference, None for none."""

    rows: F64
    base: F64 | None


@dataclass(frozen=True, slots=True, eq=False)
class Turned:
    """A module with the gauge that is nearest to its reference; ``first`` is the side that is coded first, A
    unless ``by_b``.
    """

    factors: Factors
    base: Base | None
    first: _Side
    second: _Side
    by_b: bool

    def top(self) -> float:
        """A price of a bit at which nothing is coded."""
        most = max(float(squares(side.rows).max(initial=0.0)) for side in (self.first, self.second))
        return max(1e-300, self.factors.scale**2 * most**2)

    def code(self, trellis: Trellis, price: float) -> tuple[Any, Any]:
        """The items of A and B at a price."""
        scale = self.factors.scale**2
        one, two = self.first, self.second
        base = np.zeros(one.rows.shape) if one.base is None else one.base
        coded = trellis.code(one.rows - base, scale * squares(two.rows), price)
        decoded = base + coded[3]
        gram = decoded @ decoded.T
        gram[np.diag_indices_from(gram)] += 1e-9 * np.trace(gram) / max(1, len(gram)) + 1e-300
        fitted: Any = np.linalg.solve(gram, (decoded @ one.rows.T) @ two.rows)
        mix, other = _scaled(fitted, two.base)
        rest = trellis.code(fitted - other, scale * squares(decoded), price)
        items = [self._item(trellis, not self.by_b, coded, None), self._item(trellis, self.by_b, rest, mix)]
        return (items[1], items[0]) if self.by_b else (items[0], items[1])

    def _item(self, trellis: Trellis, is_a: bool, coded: Any, mix: F64 | None) -> Difference | Levels:
        side = 0 if is_a else 1
        shape, dtype = self.factors.shapes[side], self.factors.dtypes[side]
        layout: Layout = "rows" if is_a else "columns"
        if self.base is None:
            k, classes, scales, _ = coded
            return Levels(shape, layout, trellis.bits, classes, scales, k)
        number, base = (self.base.number_a, self.base.a) if is_a else (self.base.number_b, self.base.b)
        return Difference(shape, dtype, layout, number, base, mix, trellis.item(shape, layout, coded))


def _scaled(fitted: F64, base: F64 | None) -> tuple[F64 | None, F64]:
    """The multiple of ``base`` that is nearest to ``fitted``, as a mix (None: one) and as rows."""
    if base is None:
        return None, np.zeros(fitted.shape)
    energy = float((base**2).sum())
    by = float((fitted * base).sum()) / energy if energy else 0.0
    if ((fitted - base) ** 2).sum() <= 1.02 * ((fitted - by * base) ** 2).sum():
        return None, base
    by = float(np.float32(by))
    return np.array(by), by * base


def turn(factors: Factors, base: Base | None, by_b: bool) -> Turned | None:
    """``factors`` in the gauge nearest to ``base``; None where that has another rank or other axes."""
    A, B = factors.A.astype(np.float64), factors.B.T.astype(np.float64)
    ours = (B, A) if by_b else (A, B)
    theirs: Sequence[F64 | None] = (None, None)
    if base is not None:
        if len(base.a.shape) < 2 or len(base.b.shape) < 2:
            return None
        pair = predicted(base.a, "rows", None), predicted(base.b, "columns", None)
        theirs = (pair[1], pair[0]) if by_b else pair
        if any(
            our.shape != their.shape
            for our, their in zip(ours, (theirs[0], theirs[1]), strict=True)
            if their is not None
        ):
            return None
    ortho, lower = np.linalg.qr(ours[0].T)  # ours[0] = lower.T @ ortho.T
    if theirs[0] is None:
        _, s, v = np.linalg.svd(lower.T)
        H = (s + 1e-300)[:, None] ** 0.5 * v  # rows as orthogonal as can be
    else:
        H = theirs[0] @ ortho
    if H.shape[0] != H.shape[1]:
        return None
    u, s, v = np.linalg.svd(H)
    strong = s > _WEAK * max(float(s[0]), 1e-300)
    s = np.where(strong, s, s[strong].mean() if strong.any() else 1.0)
    H = (u * s) @ v
    back = (u / s) @ v  # the inverse of H, transposed
    spare = ((0, len(A) - len(H)), (0, 0))  # of more ranks than the first side has entries, the last are zero
    first = _Side(np.pad(H @ ortho.T, spare), theirs[0])
    second = _Side(np.pad(back @ (lower @ ours[1]), spare), theirs[1])
    return Turned(factors, base, first, second, by_b)
