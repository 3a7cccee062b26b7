"""The algebra of ``delta = B @ A`` without ever forming the dense product.

``A`` is ``(r, in)``, ``B`` is ``(out, r)``; everything costs ``O((in + out) r^2)`` and accumulates in fp64.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating[Any]]
F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]

#: a difference of squares below this share of them has lost too many digits
_CANCELS = 1e-6


def inner(A1: Floats, B1: Floats, A2: Floats, B2: Floats) -> float:
    """``<B1 @ A1, B2 @ A2>``, the sum of products of entries. Ranks may differ; ``in`` and ``out`` agree."""
    left = np.asarray(B1, np.float64).T @ np.asarray(B2, np.float64)
    right = np.asarray(A1, np.float64) @ np.asarray(A2, np.float64).T
    return float((left * right).sum())


def energy(A: Floats, B: Floats) -> float:
    """``||B @ A||_F^2``."""
    return max(inner(A, B, A, B), 0.0)


def distance(A1: Floats, B1: Floats, A2: Floats, B2: Floats) -> float:
    """``||B1 @ A1 - B2 @ A2||_F^2``; for near-equal products by QR of the stacked factors, lest it cancel."""
    return compared(A1, B1, A2, B2)[0]


def compared(A1: Floats, B1: Floats, A2: Floats, B2: Floats) -> tuple[float, float]:
    """``||B1 @ A1 - B2 @ A2||_F^2`` as :func:`distance`, and ``||B1 @ A1||_F^2``."""
    A1, B1, A2, B2 = (np.asarray(x, np.float64) for x in (A1, B1, A2, B2))
    first, second = energy(A1, B1), energy(A2, B2)
    apart = first + second - 2 * inner(A1, B1, A2, B2)
    if apart > _CANCELS * (first + second):
        return apart, first
    left = np.concatenate([B1, -B2], axis=1)  # (out, r1 + r2)
    right = np.concatenate([A1, A2], axis=0)  # (r1 + r2, in)
    r_left: Any = np.linalg.qr(left, mode="r")
    r_right: Any = np.linalg.qr(right.T, mode="r")
    core = r_left @ r_right.T
    return float((core * core).sum()), first


def svd(A: Floats, B: Floats) -> tuple[F64, F64, F64]:
    """Thin SVD ``B @ A = U @ diag(s) @ V``: U ``(out, k)``, s ``(k,)`` descending, V ``(k, in)``, k = min(r,
    in, out).

    Signs are fixed (the entry of largest magnitude in each column of U is positive), so that the result does
    not depend on the LAPACK build more than by rounding. QR of both factors, SVD of the r x r core.
    """
    q_b, r_b = np.linalg.qr(B.astype(np.float64))
    q_a, r_a = np.linalg.qr(A.T.astype(np.float64))
    u, s, v = np.linalg.svd(r_b @ r_a.T)
    k = len(s)
    U, V = q_b @ u[:, :k], v[:k] @ q_a.T
    sign = np.where(np.take_along_axis(U, np.abs(U).argmax(axis=0)[None], axis=0)[0] < 0, -1.0, 1.0)
    return U * sign, s, V * sign[:, None]


def components(A: F32, B: F32, device: str = "cpu") -> tuple[F32, F64, F32]:
    """As :func:`svd`, many times faster for tall factors: U ``(out, k)`` and V ``(k, in)`` in fp32,
    s ``(k,)`` in fp64; on the GPU by torch.

    From the Gram matrices of the factors: components below about 1e-7 of the largest are not resolved, and
    come back as zero or not quite orthogonal.
    """
    if device != "cpu":
        from paring.kernels.lowrank import gpu

        return gpu.components(A, B, device)
    root_b, back_b = _root(_gram(B.T))
    root_a, back_a = _root(_gram(A))
    u, s, v = np.linalg.svd(root_b @ root_a.T, full_matrices=False)
    U = B @ (back_b @ u).astype(np.float32)
    V = (v @ back_a.T).astype(np.float32) @ A
    return U, s, V


def _gram(rows: F32) -> F64:
    """Inner products of ``rows (r, n)``, in fp64, a block of columns at a time."""
    out = np.zeros((len(rows), len(rows)))
    for start in range(0, rows.shape[1], 8192):
        part = rows[:, start : start + 8192].astype(np.float64)
        out += part @ part.T
    return out


def _root(gram: F64) -> tuple[F64, F64]:
    """R and the pseudo-inverse of R, ``R.T @ R = gram``, both ``(r, r)``."""
    values, vectors = np.linalg.eigh(gram)
    values = np.where(values > values.max(initial=0.0) * 1e-15, values, 0.0)
    root = np.sqrt(values)
    inverse = np.divide(1.0, root, out=np.zeros_like(root), where=root > 0)
    return root[:, None] * vectors.T, vectors * inverse


#: a matrix whose smaller side is larger than this is not decomposed whole for a few of its components
_WHOLE = 1536


def truncated(D: Floats, rank: int, seed: int = 0) -> tuple[F64, F64, F64]:
    """The leading components of a dense matrix ``(out, in)``: ``D ~ U @ diag(s) @ V``, at most ``rank`` of
    them, fp64, in the shapes that :func:`svd` gives.

    By eigenvectors of the smaller Gram matrix (components below 1e-8 of the largest are not resolved), or for
    few components of a large matrix by randomised subspace iteration (Halko, Martinsson, Tropp 2011,
    algorithm 4.4): 10 columns more than asked, six steps, from a fixed ``seed``.
    """
    D = D.astype(np.float64)
    if D.shape[0] > D.shape[1]:
        V_, s, U_ = truncated(D.T, rank, seed)
        return U_.T, s, V_.T
    if len(D) <= _WHOLE or 4 * rank > len(D):
        Q = np.linalg.eigh(D @ D.T)[1][:, ::-1][:, :rank]
    else:
        rng = np.random.Generator(np.random.Philox(seed))
        Q = np.linalg.qr(D @ rng.standard_normal((D.shape[1], rank + 10)))[0]
        for _ in range(6):
            Q = np.linalg.qr(D @ np.linalg.qr(D.T @ Q)[0])[0]
    inner_U, s, V = np.linalg.svd(Q.T @ D, full_matrices=False)
    return (Q @ inner_U)[:, :rank], s[:rank], V[:rank]


def balanced(A: Floats, B: Floats) -> tuple[F64, F64]:
    """The same product in its balanced gauge: ``A' = sqrt(s) V``, ``B' = U sqrt(s)``, shapes kept.

    Rank vectors come in order of falling singular value; when ``r > min(in, out)`` the last ones are zero.
    """
    U, s, V = svd(A, B)
    root = np.sqrt(s)
    A2, B2 = np.zeros(A.shape), np.zeros(B.shape)
    A2[: len(s)], B2[:, : len(s)] = root[:, None] * V, U * root
    return A2, B2


def leading(
    D: npt.NDArray[np.float32], *, rank: int | None = None, energy: float = 1.0, seed: int = 0
) -> tuple[Floats, F64, Floats]:
    """Leading components ``D ~ U @ diag(s) @ V`` of a dense fp32 matrix ``(out, in)``: the fewest that hold
    the share ``energy`` of ``||D||^2``, at most ``rank``; with ``energy`` 1 and a rank, just that many.

    As :func:`truncated`, but few components of a large matrix are found in fp32, which spares a copy of it in
    fp64, and in sketches that double until they hold enough: then the share is counted on what was found, so
    that the rank is at most a little larger than the least one.
    """
    if D.shape[0] > D.shape[1]:
        V_, s, U_ = leading(np.ascontiguousarray(D.T), rank=rank, energy=energy, seed=seed)
        return U_.T, s, V_.T
    fixed = rank is not None and energy >= 1
    most = min(len(D), rank or len(D))
    total = sum(float(np.vdot(row, row)) for row in (line.astype(np.float64) for line in D))
    size = most if fixed else min(most, 32)
    while len(D) > _WHOLE and 4 * size <= len(D):
        U, s, V = _sketched(D, size, seed)
        k = size if fixed else _enough(s**2, total, energy)
        if k < size or size == most:
            return U[:, :k], s[:k], V[:k]
        size = min(2 * size, most)
    gram, step = np.zeros((len(D), len(D))), max(1, (1 << 22) // max(1, len(D)))
    for start in range(0, D.shape[1], step):
        part = D[:, start : start + step].astype(np.float64)
        gram += part @ part.T
    values, vectors = np.linalg.eigh(gram)
    k = most if fixed else min(most, _enough(np.maximum(values[::-1], 0), total, energy))
    Q = vectors[:, ::-1][:, :k]
    inner_U, s, V = np.linalg.svd(Q.T @ D, full_matrices=False)
    return Q @ inner_U, s, V


def _enough(squares: F64, total: float, energy: float) -> int:
    """How many of the falling ``squares`` hold their share of ``total``, to fp64 rounding; all if none do."""
    short = total - np.cumsum(squares) > (1 - energy + 1e-13) * total
    return min(len(squares), int(short.sum()) + 1)


def _sketched(D: npt.NDArray[np.float32], rank: int, seed: int) -> tuple[Floats, F64, Floats]:
    """Randomised subspace iteration as in :func:`truncated`, products in fp32."""
    rng = np.random.Generator(np.random.Philox(seed))
    Q = np.linalg.qr(D @ rng.standard_normal((D.shape[1], rank + 10), np.float32))[0]
    for _ in range(6):
        Q = np.linalg.qr(D @ np.linalg.qr(D.T @ Q)[0])[0]
    U, s, V = np.linalg.svd(Q.T @ D, full_matrices=False)
    return (Q @ U)[:, :rank], s[:rank].astype(np.float64), V[:rank]
