"""The specification of :mod:`paring.kernels.merging` in plain numpy."""

from __future__ import annotations

import numpy as np

from paring.kernels.elementwise import reference as elementwise
from paring.kernels.merging import F32, F64, U16


def weighted_sum(vectors: F32, weights: F64) -> F32:
    out = np.zeros(vectors.shape[1], np.float32)
    for vector, weight in zip(vectors, weights.astype(np.float32), strict=True):
        out += weight * vector
    return out


def mix(rows: U16, k: int, base: bool, weights: F64, scale: float, out: U16) -> int:
    values = np.empty((len(rows), k), np.float32)
    if not all(elementwise.widen(row[:k], "BF16", value) for row, value in zip(rows, values, strict=True)):
        return -1
    with np.errstate(invalid="ignore", over="ignore"):
        merged = weighted_sum(values[1:] - values[0] if base else values, weights) * np.float32(scale)
        if not elementwise.narrow(merged + values[0] if base else merged, "BF16", out):
            return -1
    return elementwise.unmoved(merged, rows[0, :k], out) if base else 0


def gram(vectors: F32) -> F64:
    wide = vectors.astype(np.float64)
    return wide @ wide.T


def elected(vectors: F32, thresholds: F32, weights: F64, sign: str) -> F32:
    trimmed = np.where(np.abs(vectors) >= thresholds[:, None], vectors, np.float32(0))
    votes = np.sign(trimmed) if sign == "count" else trimmed
    return np.sign(weighted_sum(votes, weights))


def ties(vectors: F32, thresholds: F32, weights: F64, sign: str, combine: str, cancelled: float) -> F32:
    gamma = elected(vectors, thresholds, weights, sign)
    gamma[gamma == 0] = cancelled
    weighted = weights.astype(np.float32)[:, None] * vectors
    agree = (np.abs(vectors) >= thresholds[:, None]) & (weighted != 0) & (np.sign(weighted) == gamma)
    parts = np.where(agree, weighted, np.float32(0))
    if combine == "max":
        largest = np.abs(parts).argmax(axis=0)
        chosen: F32 = np.take_along_axis(parts, largest[None], axis=0)[0]
        return chosen
    total = weighted_sum(np.where(agree, vectors, np.float32(0)), weights)
    if combine == "sum":
        return total
    share = weighted_sum(agree.astype(np.float32), np.abs(weights))
    return np.divide(total, share, out=np.zeros_like(total), where=share != 0)


def pcb_scores(vectors: F32, low: F32, high: F32, rule: str) -> F32:
    n = np.float32(len(vectors))
    width = np.where(high > low, high - low, np.float32(1))[:, None]
    mu = (np.clip(np.abs(vectors), low[:, None], high[:, None]) - low[:, None]) / width
    own = np.sign(vectors) * mu
    if rule == "E":
        inter = np.tanh(own[:, None] * own[None]).sum(axis=1, dtype=np.float32)
    else:
        others = own if rule == "V" else vectors
        inter = np.tanh(vectors * others.sum(axis=0, dtype=np.float32))
    out: F32 = np.exp(n * mu * mu) * inter
    return out


def pcb(vectors: F32, low: F32, high: F32, threshold: F32, top: F32, weights: F64, rule: str) -> F32:
    scores = pcb_scores(vectors, low, high, rule)
    width = np.where(top > threshold, top - threshold, np.float32(1))[:, None]
    scale = np.maximum(scores - threshold[:, None], np.float32(0)) / width
    clamped = np.sign(vectors) * np.clip(np.abs(vectors), low[:, None], high[:, None])
    total = (clamped * scale * weights.astype(np.float32)[:, None]).sum(axis=0, dtype=np.float32)
    out: F32 = total / np.maximum(scale.sum(axis=0, dtype=np.float32), np.float32(1e-12))
    return out
