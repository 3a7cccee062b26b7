"""The best values for what a mask keeps, by masked conjugate gradients, whatever chose the mask.

Of a matrix D with inputs X, G = X X^T / tokens, every row of W minimises ``(w - d) G (w - d)`` over the
entries that the mask keeps: a linear system of its own for each row, all solved together. As in ALPS (Meng et
al., arXiv:2406.07831, section 3.3), where the steps are those of one system; here each row has its own, and
the diagonal of G as preconditioner, which needs fewer.
"""

from __future__ import annotations

import numpy as np

from paring.errors import BadValueError, OptionError
from paring.pruning.matrix import F32, F64, Mask

_ROWS = 1024  # at a time


def damped(gram: F32, damp: float) -> F64:
    """``gram (in, in)`` in fp64 with ``damp`` times the mean of its diagonal, over inputs that are not dead,
    added to it: as strong as ``damp`` of an average input in every direction. Raises OptionError.
    """
    if not 0 <= damp <= 1:
        raise OptionError(f"--damp {damp}: a share of the mean of the diagonal, 0 to 1")
    wide = gram.astype(np.float64)
    diagonal = np.diag(wide)
    live = diagonal[diagonal > 0]
    np.fill_diagonal(wide, diagonal + damp * (live.mean() if len(live) else 1.0))
    return wide


def refit(
    weights: F32, dense: F32, mask: Mask, gram: F32, *,
    damp: float = 0.01, iterations: int = 100, tolerance: float = 1e-4,
) -> F32:  # fmt: skip
    """The weights ``(out, in)``, fp32, zero where ``mask (out, in)`` is false, whose outputs on the
    calibration's inputs are nearest to those of ``dense (out, in)``.

    ``weights (out, in)`` is where the search begins; ``gram (in, in)`` is ``X X^T / tokens``, damped as
    :func:`damped` says, which draws survivors to their dense values. A row ends when its residual has shrunk
    to ``tolerance`` of what it was at zero weights, or after ``iterations``. The squared error never grows.
    Raises OptionError, BadValueError for a Gram matrix that is none."""
    wide = damped(gram, damp)
    out = np.empty(weights.shape, np.float32)
    for begin in range(0, len(out), _ROWS):
        rows = slice(begin, begin + _ROWS)
        out[rows] = solve(weights[rows], dense[rows], mask[rows], wide, iterations, tolerance)
    return out


def solve(
    start: F32 | F64, dense: F32 | F64, mask: Mask, gram: F64, iterations: int, tolerance: float
) -> F64:
    """:func:`refit`, from ``start (out, in)``, for a Gram matrix that is damped already; fp64 throughout.
    Raises BadValueError for one that is none.
    """
    diagonal = np.diag(gram)
    scale = np.divide(1.0, diagonal, out=np.zeros_like(diagonal), where=diagonal > 0)
    W = np.where(mask, start, 0.0).astype(np.float64)
    target = dense.astype(np.float64)
    whole = np.where(mask, target @ gram, 0.0)
    enough = tolerance**2 * (whole * whole * scale).sum(axis=1)
    R = np.where(mask, (target - W) @ gram, 0.0)
    Z = R * scale
    P = Z.copy()
    rz = (R * Z).sum(axis=1)
    for _ in range(iterations):
        left = np.flatnonzero(rz > enough)
        if not len(left):
            break
        Q = np.where(mask[left], P[left] @ gram, 0.0)
        curvature = (P[left] * Q).sum(axis=1)
        if (curvature < 0).any():
            raise BadValueError("the products of inputs are not those of any inputs: calibrate again")
        step = np.divide(rz[left], curvature, out=np.zeros_like(curvature), where=curvature > 0)[:, None]
        W[left] += step * P[left]
        R[left] -= step * Q
        Z = R[left] * scale
        new = (R[left] * Z).sum(axis=1)
        P[left] = Z + (new / rz[left])[:, None] * P[left]
        rz[left] = np.where(curvature > 0, new, 0.0)
    return W


def lost(weights: F32, dense: F32, gram: F32) -> float:
    """The share of the squared outputs on the calibration's inputs that is lost by ``weights (out, in)`` in
    place of ``dense (out, in)``, ``gram (in, in)``: ``tr((W - D) G (W - D)^T) / tr(D G D^T)``; 0 where there
    are none.
    """
    wide = gram.astype(np.float64)
    change, whole = weights.astype(np.float64) - dense, dense.astype(np.float64)
    total = float(((whole @ wide) * whole).sum())
    return float(((change @ wide) * change).sum()) / total if total > 0 else 0.0
