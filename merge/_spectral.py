"""Singular vectors of deltas, by the eigenvalues of Gram matrices in fp64.

That takes half the time of an SVD, and much less where a matrix is long. Squares lose the singular values
below 1e-8 of the largest; the deltas are fp32 and know nothing of those below 1e-7.
"""

from __future__ import annotations

from typing import TypeGuard

import numpy as np

from paring.merging.models import F32, F64, Place

#: singular values below this share of the largest are taken for rounding, and their vectors left out
NOISE = 1e-6


def is_matrix(shape: tuple[int, ...]) -> TypeGuard[tuple[int, int]]:
    """Whether a tensor has singular vectors; other tensors are averaged or kept as they are."""
    return len(shape) == 2


def matrices(chunk: F32, shape: tuple[int, int]) -> list[F32]:
    """The models' matrices ``(out, in)`` in a chunk that is a whole tensor."""
    return list(chunk.reshape(-1, *shape))


def mean(chunk: F32, place: Place) -> F64:
    """The coefficients of the mean of the weighted deltas, ``(models,)``."""
    return place.weights / len(chunk)


def left(gram: F64) -> F64:
    """Eigenvectors ``(m, r)`` of ``gram (m, m) = M M^T``, largest first, less those of M's rounding."""
    values, vectors = np.linalg.eigh(gram)
    kept = int((values > NOISE**2 * values[-1]).sum()) if len(values) and values[-1] > 0 else 0
    return vectors[:, ::-1][:, :kept]


def decomposed(matrix: F64) -> tuple[F64, F64, F64]:
    """``U (out, r)``, ``s (r,)`` falling, ``V^T (r, in)`` of ``matrix (out, in)``, r its numerical rank."""
    if matrix.shape[0] > matrix.shape[1]:
        v, s, ut = decomposed(matrix.T)
        return ut.T, s, v.T
    u = left(matrix @ matrix.T)
    sv = u.T @ matrix
    s = np.linalg.norm(sv, axis=1)
    return u, s, sv / s[:, None]


def orthogonal(columns: F64) -> F64:
    """The nearest matrix to ``columns (m, k)`` whose columns are orthonormal, or with k > m or columns that
    depend on one another, the nearest partial isometry."""
    values, vectors = np.linalg.eigh(columns.T @ columns)
    kept = values > 1e-10 * max(values[-1] if len(values) else 0.0, 1e-300)
    out: F64 = columns @ (vectors[:, kept] / np.sqrt(values[kept])) @ vectors[:, kept].T
    return out
