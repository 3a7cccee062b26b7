"""numba: a chunk at a time, in blocks that stay in the first cache.

Inner loops run over whole rows, ``range(len(row))``, without branches: only such loops become vectors.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from paring.kernels.jit import jit
from paring.kernels.merging import F32, F64
from paring.kernels.polynomials import exp, tanh, tanh_of_unit

_BLOCK = 2048
_ZERO, _ONE = np.float32(0), np.float32(1)


@jit()
def _add(out: Any, row: Any, weight: Any) -> None:
    for p in range(len(out)):
        out[p] += weight * row[p]


@jit()
def _weighted_sum(vectors: Any, weights: Any, out: Any) -> None:
    n, k = vectors.shape
    for begin in range(0, k, _BLOCK):
        part = out[begin : begin + _BLOCK]
        part[:] = _ZERO
        for i in range(n):
            _add(part, vectors[i, begin : begin + _BLOCK], weights[i])


def weighted_sum(vectors: F32, weights: F64) -> F32:
    out = np.empty(vectors.shape[1], np.float32)
    _weighted_sum(vectors, weights.astype(np.float32), out)
    return out


@jit(fastmath={"reassoc", "contract"})
def _dot(a: Any, b: Any) -> Any:
    total = 0.0
    for p in range(len(a)):
        total += np.float64(a[p]) * np.float64(b[p])
    return total


@jit()
def _gram(vectors: Any, out: Any) -> None:
    n, k = vectors.shape
    for begin in range(0, k, _BLOCK):
        for i in range(n):
            for j in range(i + 1):
                out[i, j] += _dot(vectors[i, begin : begin + _BLOCK], vectors[j, begin : begin + _BLOCK])


def gram(vectors: F32) -> F64:
    out = np.zeros((len(vectors), len(vectors)))
    _gram(vectors, out)
    return out + np.tril(out, -1).T


@jit()
def _signum(v: Any) -> Any:
    return np.float32(v > _ZERO) - np.float32(v < _ZERO)


@jit()
def _vote(gamma: Any, row: Any, t: Any, w: Any) -> None:
    for p in range(len(gamma)):
        v = row[p]
        gamma[p] += w * v if abs(v) >= t else _ZERO


@jit()
def _vote_once(gamma: Any, row: Any, t: Any, w: Any) -> None:
    for p in range(len(gamma)):
        v = row[p]
        gamma[p] += w * _signum(v) if abs(v) >= t else _ZERO


@jit()
def _elect(rows: Any, thresholds: Any, weights: Any, once: Any, gamma: Any) -> None:
    """The sign of the weighted sum of trimmed rows, or of their signs."""
    gamma[:] = _ZERO
    for i in range(len(rows)):
        if once:
            _vote_once(gamma, rows[i], thresholds[i], weights[i])
        else:
            _vote(gamma, rows[i], thresholds[i], weights[i])
    for p in range(len(gamma)):
        gamma[p] = _signum(gamma[p])


@jit()
def _elected(vectors: Any, thresholds: Any, weights: Any, once: Any, out: Any) -> None:
    for begin in range(0, vectors.shape[1], _BLOCK):
        rows = vectors[:, begin : begin + _BLOCK].copy()
        _elect(rows, thresholds, weights, once, out[begin : begin + _BLOCK])


def elected(vectors: F32, thresholds: F32, weights: F64, sign: str) -> F32:
    out = np.empty(vectors.shape[1], np.float32)
    _elected(vectors, thresholds, weights.astype(np.float32), sign == "count", out)
    return out


@jit()
def _agreeing(out: Any, share: Any, row: Any, gamma: Any, t: Any, w: Any) -> None:
    for p in range(len(out)):
        v = row[p]
        part = w * v
        agrees = np.float32((abs(v) >= t) & (part * gamma[p] > _ZERO))
        out[p] += agrees * part
        share[p] += agrees * abs(w)


@jit()
def _largest(out: Any, row: Any, gamma: Any, t: Any, w: Any) -> None:
    for p in range(len(out)):
        v = row[p]
        part = w * v
        part = np.float32((abs(v) >= t) & (part * gamma[p] > _ZERO)) * part
        out[p] = part if abs(part) > abs(out[p]) else out[p]


@jit()
def _ties(
    vectors: Any, thresholds: Any, weights: Any, once: Any, combine: Any, cancelled: Any, result: Any
) -> None:
    n, k = vectors.shape
    scratch = np.empty((2, _BLOCK), np.float32)
    for begin in range(0, k, _BLOCK):
        out = result[begin : begin + _BLOCK]
        gamma, share = scratch[0, : len(out)], scratch[1, : len(out)]
        rows = vectors[:, begin : begin + _BLOCK].copy()
        _elect(rows, thresholds, weights, once, gamma)
        for p in range(len(out)):
            gamma[p] += np.float32(gamma[p] == _ZERO) * cancelled
        out[:] = _ZERO
        share[:] = _ZERO
        for i in range(n):
            if combine == 2:
                _largest(out, rows[i], gamma, thresholds[i], weights[i])
            else:
                _agreeing(out, share, rows[i], gamma, thresholds[i], weights[i])
        if combine == 0:
            for p in range(len(out)):
                s = share[p]
                out[p] /= s if s != _ZERO else _ONE


def ties(vectors: F32, thresholds: F32, weights: F64, sign: str, combine: str, cancelled: float) -> F32:
    out = np.empty(vectors.shape[1], np.float32)
    how = ("mean", "sum", "max").index(combine)
    _ties(vectors, thresholds, weights.astype(np.float32), sign == "count", how, np.float32(cancelled), out)
    return out


@jit()
def _competing(own: Any, row: Any, low: Any, high: Any) -> None:
    """Signed magnitudes, winsorised and scaled to 0 .. 1."""
    width = high - low if high > low else _ONE
    for p in range(len(own)):
        a = abs(row[p])
        a = low if a < low else a
        a = high if a > high else a
        own[p] = _signum(row[p]) * ((a - low) / width)


@jit()
def _times(out: Any, a: Any, b: Any) -> None:
    for p in range(len(out)):
        out[p] = tanh(a[p] * b[p])


@jit()
def _pull(out: Any, a: Any) -> None:
    for p in range(len(out)):
        out[p] = tanh_of_unit(a[p] * a[p])


@jit()
def _pull_both(first: Any, second: Any, a: Any, b: Any) -> None:
    for p in range(len(first)):
        t = tanh_of_unit(a[p] * b[p])
        first[p] += t
        second[p] += t


@jit()
def _times_exp(out: Any, own: Any, n: Any) -> None:
    for p in range(len(out)):
        out[p] *= exp(n * own[p] * own[p])


@jit()
def _scores(
    vectors: Any, begin: Any, end: Any, low: Any, high: Any, rule: Any, own: Any, out: Any, at: Any
) -> None:
    """Scores of a block of ``vectors (models, k)`` to ``out`` from column ``at`` on; ``own (models + 1,
    block)`` is scratch."""
    n, k = len(vectors), end - begin
    to = at + k
    for i in range(n):
        _competing(own[i, :k], vectors[i, begin:end], low[i], high[i])
    if rule == 0:
        for i in range(n):
            _pull(out[i, at:to], own[i, :k])
        for i in range(n):
            for j in range(i):
                _pull_both(out[i, at:to], out[j, at:to], own[i, :k], own[j, :k])
    else:
        own[n, :] = _ZERO
        for i in range(n):
            if rule == 2:
                _add(own[n, :k], own[i, :k], _ONE)
            else:
                _add(own[n, :k], vectors[i, begin:end], _ONE)
        for i in range(n):
            _times(out[i, at:to], vectors[i, begin:end], own[n, :k])
    for i in range(n):
        _times_exp(out[i, at:to], own[i, :k], np.float32(n))


@jit()
def _all_scores(vectors: Any, low: Any, high: Any, rule: Any, out: Any) -> None:
    n, k = vectors.shape
    own = np.empty((n + 1, _BLOCK), np.float32)
    for begin in range(0, k, _BLOCK):
        _scores(vectors, begin, min(begin + _BLOCK, k), low, high, rule, own, out, begin)


_RULES = {"E": 0, "A": 1, "N": 1, "V": 2}


def pcb_scores(vectors: F32, low: F32, high: F32, rule: str) -> F32:
    out = np.empty(vectors.shape, np.float32)
    _all_scores(vectors, low, high, _RULES[rule], out)
    return out


@jit()
def _balanced(
    out: Any, share: Any, row: Any, scores: Any, low: Any, high: Any, t: Any, top: Any, w: Any
) -> None:
    width = top - t if top > t else _ONE
    for p in range(len(out)):
        a = abs(row[p])
        a = low if a < low else a
        a = high if a > high else a
        scale = scores[p] - t
        scale = (scale if scale > _ZERO else _ZERO) / width
        out[p] += _signum(row[p]) * a * scale * w
        share[p] += scale


@jit()
def _pcb(
    vectors: Any, low: Any, high: Any, threshold: Any, top: Any, weights: Any, rule: Any, result: Any
) -> None:
    n, k = vectors.shape
    own, some = np.empty((n + 1, _BLOCK), np.float32), np.empty((n, _BLOCK), np.float32)
    for begin in range(0, k, _BLOCK):
        end = min(begin + _BLOCK, k)
        _scores(vectors, begin, end, low, high, rule, own, some, 0)
        out, share = result[begin:end], own[n, : end - begin]
        out[:] = _ZERO
        share[:] = _ZERO
        for i in range(n):
            row, found = vectors[i, begin:end], some[i, : end - begin]
            _balanced(out, share, row, found, low[i], high[i], threshold[i], top[i], weights[i])
        for p in range(len(out)):
            s = share[p]
            out[p] /= s if s > np.float32(1e-12) else np.float32(1e-12)


def pcb(vectors: F32, low: F32, high: F32, threshold: F32, top: F32, weights: F64, rule: str) -> F32:
    out = np.empty(vectors.shape[1], np.float32)
    _pcb(vectors, low, high, threshold, top, weights.astype(np.float32), _RULES[rule], out)
    return out
