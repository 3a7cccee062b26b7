"""Components of an update on the trellis: the rank vectors of both sides, their weights, the tensors made of
them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from paring.codecs.trellis import Levels
from paring.coding import rounded
from paring.compress._trellis import PLAN
from paring.kernels.ternary.tensor import Layout, segments
from paring.kernels.trellis.tensor import quantise

F64 = npt.NDArray[np.float64]
Real = npt.NDArray[np.floating[Any]]
Shape = tuple[int, ...]


class Side:
    """One side's rank vectors, (c, n): what becomes of them on the trellis, by the ``rows`` of ``PLAN``."""

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


def fitted(levels: F64, mine: Real, theirs: Real) -> F64:
    """The rank vectors (c, n) that fit best beside ``levels`` (c, m) of the other side, least squares.

    The update is ``theirs.T @ mine`` with ``mine`` (r, n), ``theirs`` (r, m).
    """
    gram = levels @ levels.T
    gram[np.diag_indices_from(gram)] += 1e-9 * np.trace(gram) / max(1, len(gram)) + 1e-300
    found: F64 = np.linalg.solve(gram, levels @ theirs.T) @ mine
    return found


def weights(u: F64, v: F64, U: Real, s: F64, V: Real, norm: float = 0.0) -> F64:
    """The weights g (c,) for which ``sum_c g_c u_c v_c``, of levels u (c, out) and v (c, in), is nearest to
    the update ``U diag(s) V``; then a share ``norm`` of the norm that it lacks is given back.
    """
    gram = (u @ u.T) * (v @ v.T)
    gram[np.diag_indices_from(gram)] += 1e-12 * np.trace(gram) / max(1, len(gram)) + 1e-300
    nearest: F64 = np.linalg.solve(gram, ((u @ U) * s * (v @ V.T)).sum(axis=1))
    energy, kept = float((s**2).sum()), float(nearest @ gram @ nearest)
    return nearest * (energy / kept) ** (norm / 2) if kept > 0 else nearest


def tensors(
    u: Side, v: Side, scale: F64, distortion: F64, shapes: tuple[Shape, ...], module_scale: float = 1.0
) -> tuple[Levels, Levels]:
    """The tensors a and b, of ``shapes``, of components (c,) whose sides are ``u`` and ``v``, at ``scale``
    (c,); the module's own scale is taken out of them. ``distortion`` (c,) is the share that is lost.

    What scales tell is all in those of a: b has one power of four, with which the sides of the strongest
    component are nearly of one size.
    """
    used = (u.classes > 0) & (v.classes > 0) & (scale != 0)
    whole = np.where(used, scale, 0.0) / (module_scale or 1.0)
    lengths = [np.sqrt(np.maximum((side.levels**2).sum(axis=1), 1.0)) for side in (u, v)]
    of_u = np.ones(len(whole))
    if used.any():
        top = np.argmax(np.abs(whole) * lengths[0] * lengths[1])
        of_u *= 4.0 ** np.round(np.log2(np.abs(whole[top]) * lengths[1][top] / lengths[0][top]) / 4)
    of_v = short(whole / of_u, distortion)
    return tensor(shapes[0], "rows", v, used, of_v), tensor(shapes[1], "columns", u, used, of_u)


def tensor(shape: Shape, layout: Layout, side: Side, used: npt.NDArray[np.bool_], scale: F64) -> Levels:
    """A side as a tensor of ``shape``: the rank vectors that are ``used`` (c,), at ``scale`` (c,), first,
    zeros behind them.
    """
    count, n = segments(shape, layout)
    k = np.zeros((count, n), np.int16)
    classes, scales = np.zeros(count, np.uint8), np.zeros(count, np.float32)
    at = np.flatnonzero(used)
    k[: len(at)] = side.k[at]
    classes[: len(at)], scales[: len(at)] = side.classes[at], scale[at]
    return Levels(shape, layout, side.bits, classes, scales, k)


def short(x: F64, distortion: F64) -> F64:
    """``x`` (c,) rounded to so few bits behind the leading one as hardly add to ``distortion`` (c,), at least
    five.
    """
    bits = np.ceil(np.maximum(5, np.log2(4.2 / np.maximum(distortion, 1e-9)) / 2)).astype(int)
    return rounded(x, bits + 1)
