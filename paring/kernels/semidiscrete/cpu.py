"""numba: one module a call, without the interpreter lock, so that modules run in parallel threads.

Vectors and their products are fp32, which halves the memory to move; energies and scales are fp64.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from paring.kernels.jit import jit
from paring.kernels.semidiscrete import (
    ALTERNATIONS,
    F64,
    POWER_STEPS,
    SIDE_BITS,
    STEPS_PER_RMS,
    TOP_RMS,
    Trits,
)

_LEVELS = STEPS_PER_RMS * TOP_RMS
# sums may be reordered (vectorised); NaN and infinity never get here
_njit = jit(fastmath={"reassoc", "contract"})

_Array = npt.NDArray[Any]


@_njit
def _bits(n: int, kept: float) -> float:
    """Bits of a ternary vector of n entries, ``kept`` of them non-zero."""
    if kept == 0:
        return 0.0
    bits: float = SIDE_BITS + kept + n * np.log2(n) - kept * np.log2(kept)
    if kept < n:
        bits -= (n - kept) * np.log2(n - kept)
    return bits


@_njit
def _square(x: _Array) -> float:
    """The squared norm of ``x``."""
    total = 0.0
    for i in range(x.size):
        total += np.float64(x[i]) * np.float64(x[i])
    return total


@_njit
def _ternarise(y: _Array, partner: float, slope: float, out: _Array) -> int:
    """Write the best ternary vector for the target ``y`` into ``out`` and return how many entries it keeps.

    ``partner`` is the squared norm of the other vector of the term: with c = sum of kept |y|, a vector of k
    entries captures the energy c^2 / (k partner).
    """
    n = y.size
    energy = 0.0
    for i in range(n):
        energy += np.float64(y[i]) * np.float64(y[i])
    if energy == 0.0 or partner == 0.0:
        out[:] = 0.0
        return 0
    step = np.sqrt(energy / n) / STEPS_PER_RMS
    inverse = 1.0 / step
    counts = np.zeros(_LEVELS + 1)
    sums = np.zeros(_LEVELS + 1)
    for i in range(n):
        a = abs(y[i])
        level = min(int(a * inverse), _LEVELS)
        counts[level] += 1.0
        sums[level] += a
    best, chosen, kept, captured = 0.0, -1, 0.0, 0.0
    for level in range(_LEVELS, -1, -1):
        if counts[level] == 0.0:
            continue
        kept += counts[level]
        captured += sums[level]
        gain = captured * captured / (kept * partner) - slope * _bits(n, kept)
        if gain > best:
            best, chosen = gain, level
    if chosen < 0:
        out[:] = 0.0
        return 0
    total = 0
    for i in range(n):
        # the same expression as above: an entry counted in a level is kept with that level
        if min(int(abs(y[i]) * inverse), _LEVELS) >= chosen and y[i] != 0.0:
            out[i] = 1.0 if y[i] > 0.0 else -1.0
            total += 1
        else:
            out[i] = 0.0
    return total


@_njit
def _project(F: _Array, x: _Array, out: _Array) -> None:
    """out (rows,) = F (rows, n) @ x (n,)."""
    for c in range(F.shape[0]):
        total = np.float32(0.0)
        for i in range(x.size):
            total += F[c, i] * x[i]
        out[c] = total


@_njit
def _residual_times(
    far: _Array, near: _Array, far_terms: _Array, near_terms: _Array, scale: _Array, x: _Array, out: _Array
) -> None:
    """out (m,) = residual @ x, where the residual is ``far^T near - far_terms^T diag(scale) near_terms``.

    far (r, m), near (r, n), far_terms (t, m), near_terms (t, n), x (n,). Serves both orientations.
    """
    inner = np.empty(near.shape[0], np.float32)
    _project(near, x, inner)
    out[:] = 0.0
    for c in range(far.shape[0]):
        weight = inner[c]
        for i in range(out.size):
            out[i] += weight * far[c, i]
    for c in range(far_terms.shape[0]):
        if scale[c] == 0.0:
            continue
        total = np.float32(0.0)
        for i in range(x.size):
            total += near_terms[c, i] * x[i]
        weight = np.float32(total * scale[c])
        for i in range(out.size):
            out[i] -= weight * far_terms[c, i]


@_njit
def _improve(
    A: _Array, Bt: _Array, P: _Array, Q: _Array, scale: _Array, c: int, slope: float, rounds: int
) -> None:
    """Improve term c in place on the residual of the others, ``rounds`` times p then q; drop it if unpaid."""
    y_out = np.empty(Bt.shape[1], np.float32)
    y_in = np.empty(A.shape[1], np.float32)
    scale[c] = 0.0
    for _ in range(rounds):
        norm_q = _square(Q[c])
        _residual_times(Bt, A, P, Q, scale, Q[c], y_out)
        kept_p = _ternarise(y_out, norm_q, slope, P[c])
        if kept_p == 0:
            break
        _residual_times(A, Bt, Q, P, scale, P[c], y_in)
        kept_q = _ternarise(y_in, float(kept_p), slope, Q[c])
        if kept_q == 0:
            break
    norm_p, norm_q = _square(P[c]), _square(Q[c])
    if norm_p == 0.0 or norm_q == 0.0:
        P[c], Q[c] = 0.0, 0.0
        return
    total = 0.0
    for i in range(y_in.size):
        total += y_in[i] * Q[c, i]
    gain = total * total / (norm_p * norm_q)
    if gain <= slope * (_bits(y_out.size, norm_p) + _bits(y_in.size, norm_q)):
        P[c], Q[c] = 0.0, 0.0
        return
    scale[c] = total / (norm_p * norm_q)


@_njit
def _build(A: _Array, Bt: _Array, P: _Array, Q: _Array, scale: _Array, slope: float) -> None:
    """Greedy: each term starts from the leading direction of the residual (power steps) and is improved."""
    x = np.empty(A.shape[1], np.float32)
    y = np.empty(Bt.shape[1], np.float32)
    rows = A.shape[0]
    while rows > 1 and not A[rows - 1].any():
        rows -= 1
    for c in range(P.shape[0]):
        # a start that is not orthogonal to the residual; there may be more terms than rank vectors in use
        x[:] = A[c % rows]
        for _ in range(POWER_STEPS):
            _residual_times(Bt, A, P, Q, scale, x, y)
            norm = np.sqrt(_square(y))
            if norm == 0.0:
                return
            y *= np.float32(1.0 / norm)
            _residual_times(A, Bt, Q, P, scale, y, x)
        if _ternarise(x, 1.0, slope, Q[c]) == 0:
            return
        _improve(A, Bt, P, Q, scale, c, slope, ALTERNATIONS)
        if scale[c] == 0.0:
            return


@_njit
def _sweep(A: _Array, Bt: _Array, P: _Array, Q: _Array, scale: _Array, slope: float) -> None:
    for c in range(P.shape[0]):
        if scale[c] != 0.0:
            _improve(A, Bt, P, Q, scale, c, slope, 1)


def _rescale(A: _Array, Bt: _Array, P: _Array, Q: _Array, scale: F64) -> None:
    """Least-squares scales of all terms at once, in place, in the precision of A and Bt."""
    used = np.flatnonzero(scale)
    if used.size:
        p, q = P[used].astype(A.dtype, copy=False), Q[used].astype(A.dtype, copy=False)
        gram = (p @ p.T).astype(np.float64) * (q @ q.T)
        target = ((p @ Bt.T).astype(np.float64) * (q @ A.T)).sum(axis=1)
        scale[used] = np.linalg.lstsq(gram, target, rcond=1e-9)[0]


def _unit(x: F64) -> tuple[F64, float]:
    """``x`` over a power of two that brings its largest magnitude to between 1/2 and 1, and that power."""
    power = float(2.0 ** np.frexp(np.abs(x).max(initial=0.0))[1])
    return np.ascontiguousarray(x / power, np.float64), power


def fit(A: F64, B: F64, slope: float, sweeps: int) -> tuple[Trits, Trits, F64]:
    near, unit_a = _unit(A)
    far, unit_b = _unit(B.T)
    price = slope / unit_a**2 / unit_b**2
    near32, far32 = near.astype(np.float32), far.astype(np.float32)
    P, Q = (np.zeros(side.shape, np.float32) for side in (far, near))
    scale = np.zeros(len(near))
    _build(near32, far32, P, Q, scale, price)
    for _ in range(sweeps):
        _rescale(near32, far32, P, Q, scale)
        _sweep(near32, far32, P, Q, scale, price)
    _rescale(near, far, P, Q, scale)
    P *= np.sign(scale).astype(np.float32)[:, None]  # a scale is a magnitude; its sign goes to p
    Q *= (scale != 0)[:, None]
    energy = scale**2 * (P * P).sum(axis=1) * (Q * Q).sum(axis=1)
    order = np.argsort(-energy, kind="stable")
    return P[order].astype(np.int8), Q[order].astype(np.int8), np.abs(scale[order]) * unit_a * unit_b
