"""numba: a chunk at a time, in blocks that stay in the first cache, as :mod:`paring.kernels.merging.cpu`."""

from __future__ import annotations

from typing import Any

import numpy as np

from paring.kernels.jit import jit
from paring.kernels.merging import F32, F64

_BLOCK = 2048
_ZERO = np.float32(0)


@jit()
def _add_band(out: Any, row: Any, low: Any, high: Any, w: Any) -> None:
    for p in range(len(out)):
        a = abs(row[p])
        out[p] += np.float32((a >= low) & (a <= high)) * (w * row[p])


@jit()
def _band_sum(vectors: Any, low: Any, high: Any, weights: Any, out: Any) -> None:
    for begin in range(0, len(out), _BLOCK):
        part = out[begin : begin + _BLOCK]
        for i in range(len(vectors)):
            _add_band(part, vectors[i, begin : begin + _BLOCK], low[i], high[i], weights[i])


def band_sum(vectors: F32, low: F32, high: F32, weights: F64) -> F32:
    out = np.zeros(vectors.shape[1], np.float32)
    _band_sum(vectors, low, high, weights.astype(np.float32), out)
    return out


@jit()
def _add(out: Any, row: Any, w: Any) -> None:
    for p in range(len(out)):
        out[p] += w * row[p]


@jit()
def _vote(votes: Any, total: Any, row: Any, w: Any, strictness: Any) -> None:
    for p in range(len(votes)):
        v = w * row[p]
        votes[p] += np.float32(abs(v) > strictness * abs(total[p] - v))


@jit()
def _consensus(vectors: Any, weights: Any, strictness: Any, agree: Any, out: Any) -> None:
    votes = np.empty(_BLOCK, np.float32)
    for begin in range(0, len(out), _BLOCK):
        total = out[begin : begin + _BLOCK]
        some = votes[: len(total)]
        some[:] = _ZERO
        for i in range(len(vectors)):
            _add(total, vectors[i, begin : begin + _BLOCK], weights[i])
        for i in range(len(vectors)):
            _vote(some, total, vectors[i, begin : begin + _BLOCK], weights[i], strictness)
        for p in range(len(total)):
            total[p] = total[p] if some[p] >= agree else _ZERO


def consensus(vectors: F32, weights: F64, strictness: float, agree: int) -> F32:
    out = np.zeros(vectors.shape[1], np.float32)
    _consensus(vectors, weights.astype(np.float32), np.float32(strictness), np.float32(agree), out)
    return out


@jit()
def _add_agreeing(out: Any, share: Any, row: Any, signs: Any, w: Any) -> None:
    for p in range(len(out)):
        agrees = np.float32(row[p] * signs[p] > _ZERO)
        out[p] += agrees * (w * row[p])
        share[p] += agrees * w


@jit()
def _erased_sum(vectors: Any, signs: Any, weights: Any, out: Any, share: Any) -> None:
    for begin in range(0, len(out), _BLOCK):
        stop = begin + _BLOCK
        for i in range(len(vectors)):
            _add_agreeing(
                out[begin:stop], share[begin:stop], vectors[i, begin:stop], signs[begin:stop], weights[i]
            )


def erased_sum(vectors: F32, signs: F32, weights: F64) -> tuple[F32, F32]:
    out, share = np.zeros((2, vectors.shape[1]), np.float32)
    _erased_sum(vectors, signs, weights.astype(np.float32), out, share)
    return out, share


@jit()
def _add_square(out: Any, row: Any, mean: Any) -> None:
    for p in range(len(out)):
        away = row[p] - mean[p]
        out[p] += away * away


@jit()
def _variance(vectors: Any, out: Any) -> None:
    means = np.empty(_BLOCK, np.float32)
    n = np.float32(len(vectors))
    for begin in range(0, len(out), _BLOCK):
        part = out[begin : begin + _BLOCK]
        mean = means[: len(part)]
        mean[:] = _ZERO
        for i in range(len(vectors)):
            _add(mean, vectors[i, begin : begin + _BLOCK], np.float32(1))
        for p in range(len(mean)):
            mean[p] /= n
        for i in range(len(vectors)):
            _add_square(part, vectors[i, begin : begin + _BLOCK], mean)
        for p in range(len(part)):
            part[p] /= n


def variance(vectors: F32) -> F32:
    out = np.zeros(vectors.shape[1], np.float32)
    _variance(vectors, out)
    return out
