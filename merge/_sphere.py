"""Walking on spheres, given inner products alone."""

from __future__ import annotations

import math

import numpy as np

from paring.merging.models import F64


def arc(gram: F64, t: float, nearly: float) -> F64:
    """Coefficients ``(..., 2)`` of the vector ``t`` of the way from the first to the second on the sphere.

    ``gram (..., 2, 2)``. Linear where the cosine is beyond ``nearly`` either way or a vector is zero: there
    is no one circle.
    """
    norms = np.sqrt(gram[..., 0, 0] * gram[..., 1, 1])
    cosine = np.divide(gram[..., 0, 1], norms, out=np.ones_like(norms), where=norms > 0)
    flat = np.abs(cosine) > nearly
    angle = np.arccos(np.where(flat, 0.0, cosine))
    ways = np.array([1 - t, t])
    round_ways = np.sin(ways * angle[..., None]) / np.sin(angle)[..., None]
    return np.where(flat[..., None], ways, round_ways)


def centre(gram: F64, weights: F64) -> F64:
    """Coefficients of the Karcher mean of directions times the weighted mean of the norms.

    ``gram (n, n)``; ``weights (n,)`` are not negative and sum to one. Where the directions cancel they have
    no mean: there it is the weighted mean of the vectors. One opposite to the mean does not turn it.
    """
    norms = np.sqrt(np.diag(gram))
    some = (norms > 0) & (weights > 0)
    out = np.zeros(len(norms))
    if not some.any():
        return out
    cosines = gram[np.ix_(some, some)] / np.outer(norms[some], norms[some])
    w = weights[some] / weights[some].sum()
    c = w  # the mean is sum_i c_i u_i, u_i the directions
    length = math.sqrt(max(0.0, c @ cosines @ c))
    if length < 1e-6:
        return weights
    c = c / length
    for _ in range(100):
        along = np.clip(cosines @ c, -1, 1)
        angles = np.arccos(along)
        sines = np.sqrt(1 - along**2)
        # nothing at the opposite pole, which is as far in every direction
        pull = w * np.divide(angles, sines, out=(along > 0).astype(np.float64), where=sines > 1e-4)
        step = pull - (pull @ along) * c
        size = math.sqrt(max(0.0, step @ cosines @ step))
        if size < 1e-9:
            break
        c = math.cos(size) * c + math.sin(size) / size * step
        c = c / math.sqrt(c @ cosines @ c)
    out[some] = c / norms[some] * (weights @ norms)
    return out
