"""The specification of :mod:`paring.kernels.masks` in plain numpy."""

from __future__ import annotations

import numpy as np

from paring.kernels.merging import F32, F64
from paring.kernels.merging.reference import weighted_sum


def band_sum(vectors: F32, low: F32, high: F32, weights: F64) -> F32:
    size = np.abs(vectors)
    kept = (size >= low[:, None]) & (size <= high[:, None])
    return weighted_sum(np.where(kept, vectors, np.float32(0)), weights)


def consensus(vectors: F32, weights: F64, strictness: float, agree: int) -> F32:
    parts = weights.astype(np.float32)[:, None] * vectors
    total = weighted_sum(parts, np.ones(len(parts)))
    votes = (np.abs(parts) > np.float32(strictness) * np.abs(total - parts)).sum(axis=0)
    return np.where(votes >= agree, total, np.float32(0))


def erased_sum(vectors: F32, signs: F32, weights: F64) -> tuple[F32, F32]:
    agrees = vectors * signs > 0
    share = weighted_sum(agrees.astype(np.float32), weights)
    return weighted_sum(np.where(agrees, vectors, np.float32(0)), weights), share


def variance(vectors: F32) -> F32:
    n = np.float32(len(vectors))
    mean = vectors.sum(axis=0, dtype=np.float32) / n
    out: F32 = ((vectors - mean) ** 2).sum(axis=0, dtype=np.float32) / n
    return out
