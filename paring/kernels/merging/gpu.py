"""torch: the same of chunks on any device. Sums over models run in the same order; results agree with the
reference to rounding (products and sums may be fused)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from paring.kernels.merging import F32, F64

T = torch.Tensor


def _column(values: Any, like: T) -> T:
    """Numbers of the models ``(models,)`` as a column in fp32, beside chunks."""
    return torch.as_tensor(np.asarray(values, np.float32), device=like.device)[:, None]


def weighted_sum(vectors: T, weights: F64) -> T:
    out = torch.zeros_like(vectors[0])
    for vector, weight in zip(vectors, np.asarray(weights, np.float32).tolist(), strict=True):
        out += weight * vector
    return out


def gram(vectors: T) -> F64:
    wide = vectors.double()
    found: F64 = (wide @ wide.T).cpu().numpy()
    return found


def elected(vectors: T, thresholds: F32, weights: F64, sign: str) -> T:
    trimmed = torch.where(vectors.abs() >= _column(thresholds, vectors), vectors, 0)
    return weighted_sum(torch.sign(trimmed) if sign == "count" else trimmed, weights).sign()


def ties(vectors: T, thresholds: F32, weights: F64, sign: str, combine: str, cancelled: float) -> T:
    gamma = elected(vectors, thresholds, weights, sign)
    gamma = torch.where(gamma == 0, cancelled, gamma)
    weighted = _column(weights, vectors) * vectors
    agree = (vectors.abs() >= _column(thresholds, vectors)) & (weighted * gamma > 0)
    if combine == "max":
        parts = torch.where(agree, weighted, 0)
        return parts.gather(0, parts.abs().argmax(dim=0, keepdim=True))[0]
    total = weighted_sum(torch.where(agree, vectors, 0), weights)
    if combine == "sum":
        return total
    share = weighted_sum(agree.float(), np.abs(weights))
    return total / torch.where(share == 0, 1, share)


def _own(vectors: T, low: F32, high: F32) -> tuple[T, T]:
    """Magnitudes winsorised, and scaled to 0 .. 1."""
    a, b = _column(low, vectors), _column(high, vectors)
    clamped = vectors.abs().maximum(a).minimum(b)
    return clamped, (clamped - a) / torch.where(b > a, b - a, 1)


def pcb_scores(vectors: T, low: F32, high: F32, rule: str) -> T:
    mu = _own(vectors, low, high)[1]
    own = vectors.sign() * mu
    if rule == "E":
        inter = torch.zeros_like(own)
        for other in own:
            inter += torch.tanh(own * other)
    else:
        others = own if rule == "V" else vectors
        inter = torch.tanh(vectors * others.sum(dim=0))
    return torch.exp(len(vectors) * mu * mu) * inter


def pcb(vectors: T, low: F32, high: F32, threshold: F32, top: F32, weights: F64, rule: str) -> T:
    t, most = _column(threshold, vectors), _column(top, vectors)
    scale = (pcb_scores(vectors, low, high, rule) - t).clamp(min=0) / torch.where(most > t, most - t, 1)
    clamped = vectors.sign() * _own(vectors, low, high)[0]
    total = (clamped * scale * _column(weights, vectors)).sum(dim=0)
    return total / scale.sum(dim=0).clamp(min=1e-12)
