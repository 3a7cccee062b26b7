"""The specification of :mod:`paring.kernels.semidiscrete` in plain numpy; it forms the matrix.

It agrees with the fast kernel up to rounding. Where two thresholds gain the same but for rounding, either may
be taken, and the terms after that may differ.
"""

from __future__ import annotations

import numpy as np

from paring.kernels.semidiscrete import (
    ALTERNATIONS,
    F64,
    POWER_STEPS,
    SIDE_BITS,
    STEPS_PER_RMS,
    TOP_RMS,
    Trits,
)


def fit(A: F64, B: F64, slope: float, sweeps: int) -> tuple[Trits, Trits, F64]:
    M = B @ A
    P, Q, scale = np.zeros(B.T.shape), np.zeros(A.shape), np.zeros(len(A))
    rows = max(np.flatnonzero(A.any(axis=1)).tolist(), default=0) + 1
    for c in range(len(A)):
        R = M - (P.T * scale) @ Q
        x = A[c % rows]
        for _ in range(POWER_STEPS):
            y = R @ x
            if not (norm := np.sqrt(y @ y)):
                break
            x = R.T @ (y / norm)
        P[c], Q[c], scale[c] = _improved(R, ternarise(x, 1.0, slope), slope, ALTERNATIONS)
        if not scale[c]:
            break
    _rescale(M, P, Q, scale)
    for _ in range(sweeps):
        for c in np.flatnonzero(scale).tolist():
            scale[c] = 0.0
            P[c], Q[c], scale[c] = _improved(M - (P.T * scale) @ Q, Q[c], slope, 1)
        _rescale(M, P, Q, scale)
    P, Q = P * np.sign(scale)[:, None], Q * (scale != 0)[:, None]
    order = np.argsort(-(scale**2) * (P * P).sum(axis=1) * (Q * Q).sum(axis=1), kind="stable")
    return P[order].astype(np.int8), Q[order].astype(np.int8), np.abs(scale[order])


def bits(n: int, kept: float) -> float:
    """Bits of a ternary vector of n entries, ``kept`` of them non-zero: n (H(k) + k) + SIDE_BITS."""
    k = kept / n
    entropy = -sum(p * np.log2(p) for p in (k, 1 - k) if p)
    return float(n * (entropy + k) + SIDE_BITS) if kept else 0.0


def ternarise(y: F64, partner: float, slope: float) -> F64:
    """The best of all ``y (n,)`` thresholded to -1, 0, +1; ``partner`` is the term's other squared norm."""
    magnitude = np.abs(y)
    step = np.sqrt(y @ y / len(y)) / STEPS_PER_RMS
    if not step or not partner:
        return np.zeros(len(y))
    level = np.minimum(magnitude * (1.0 / step), STEPS_PER_RMS * TOP_RMS).astype(np.int64)
    best, chosen = 0.0, np.zeros(len(y), bool)
    for lowest in np.unique(level)[::-1]:
        kept = level >= lowest
        count = float(kept.sum())
        gain = magnitude[kept].sum() ** 2 / (count * partner) - slope * bits(len(y), count)
        if gain > best:
            best, chosen = gain, kept
    return np.where(chosen, np.sign(y), 0.0)


def _improved(R: F64, q: F64, slope: float, rounds: int) -> tuple[F64, F64, float]:
    """A term on the residual R, from q: ``rounds`` times p then q; all zero if its energy does not pay."""
    p = np.zeros(len(R))
    for _ in range(rounds):
        p = ternarise(R @ q, float(q @ q), slope)
        q = ternarise(R.T @ p, float(p @ p), slope)
    kept_p, kept_q, total = float(p @ p), float(q @ q), float(p @ R @ q)
    norms = kept_p * kept_q
    if not norms or total * total / norms <= slope * (bits(len(p), kept_p) + bits(len(q), kept_q)):
        return np.zeros(len(p)), np.zeros(len(q)), 0.0
    return p, q, total / norms


def _rescale(M: F64, P: F64, Q: F64, scale: F64) -> None:
    """Least-squares scales of all terms at once, in place."""
    used = np.flatnonzero(scale)
    if used.size:
        p, q = P[used], Q[used]
        right = np.einsum("co,oi,ci->c", p, M, q)
        scale[used] = np.linalg.lstsq((p @ p.T) * (q @ q.T), right, rcond=1e-9)[0]
