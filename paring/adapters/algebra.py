"""Updates that are matrix products only after algebra: their factors, in fp64.

Every function returns A ``(r, in)`` and B ``(out, r)`` with ``B @ A`` the update before its scale; of
convolutions, ``in`` runs over input channels and then the kernel. Products of two fp32 numbers are exact in
fp64, so what these formulas lose is rounding of fp64 at most, until the factors are stored.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]
Pair = tuple[F64, F64]


def khatri_rao(first: Pair, second: Pair) -> Pair:
    """The Hadamard product of two products, ``(B1 @ A1) * (B2 @ A2)``, of rank ``r1 * r2``."""
    (A1, B1), (A2, B2) = first, second
    A = (A1[:, None, :] * A2[None, :, :]).reshape(-1, A1.shape[1])
    B = (B1[:, :, None] * B2[:, None, :]).reshape(len(B1), -1)
    return A, B


def kronecker(first: Pair, second: Pair) -> Pair:
    """``kron(B1 @ A1, B2 @ A2)``, of rank ``r1 * r2``."""
    (A1, B1), (A2, B2) = first, second
    return _kron(A1, A2), _kron(B1, B2)


def kronecker_by_kernel(first: Pair, second: Pair, kernel: int) -> Pair:
    """PEFT's LoKr on one-dimensional convolutions: entry ``[(c, a), (d, b, k)]`` is ``w1[a, b] w2[c, d, k]``.

    ``second`` is w2 as ``(c, d * kernel)``. torch.kron of a matrix and a three-axis tensor pads the matrix in
    front, so that axes meet in another order than in a Kronecker product of matrices.
    """
    (A1, B1), (A2, B2) = first, second
    cube = A2.reshape(len(A2), -1, kernel)
    A = np.einsum("ib,jdk->jidbk", A1, cube).reshape(len(A1) * len(A2), -1)
    return A, _kron(B2, B1)


def _kron(first: F64, second: F64) -> F64:
    return np.asarray(np.kron(first, second), np.float64)


def whole(matrix: F64) -> Pair:
    """A ``matrix (out, in)`` as a product with the smaller identity, exact."""
    rows, columns = matrix.shape
    return (matrix, np.eye(rows)) if rows <= columns else (np.eye(columns), matrix)


def least(A: F64, B: F64) -> Pair:
    """``B @ A`` with the fewest components that need no decomposition: as it is, or multiplied out."""
    return (A, B) if len(A) <= min(len(B), A.shape[1]) else whole(B @ A)


def tucker(core: F64, down: F64, up: F64) -> Pair:
    """``sum_mn up[o, m] core[m, n, k...] down[n, i]`` with ``core (r, r, k...)``, ``down (r, in)``,
    ``up (out, r)``.
    """
    inner = np.tensordot(core, down, axes=(1, 0))  # (r, k..., in)
    return np.moveaxis(inner, -1, 1).reshape(len(core), -1), up


def diagonal(A: F64, B: F64, left: F64 | None, middle: F64) -> Pair:
    """``diag(left) @ B @ diag(middle) @ A``; ``left (out,)``, ``middle (r,)``."""
    return middle.reshape(-1, 1) * A, B if left is None else left.reshape(-1, 1) * B


def mixtures(bank: F64, indices: npt.NDArray[np.int64], weights: F64) -> F64:
    """Weighted sums of vectors of a bank ``(n, v)``: ``indices``, ``weights (..., k)`` to ``(..., v)``."""
    found: F64 = (weights[..., None] * bank[indices]).sum(axis=-2)
    return found


def top(logits: F64, k: int) -> tuple[npt.NDArray[np.int64], F64]:
    """Indices of the ``k`` largest of ``logits (..., n)`` and their softmax, ``(..., k)``; of equal ones the
    first."""
    indices = np.argsort(-logits, axis=-1, kind="stable")[..., :k]
    chosen = np.take_along_axis(logits, indices, axis=-1)
    raised = np.exp(chosen - chosen.max(axis=-1, keepdims=True))
    return indices, raised / raised.sum(axis=-1, keepdims=True)


def grouped(A: F64, B: F64, groups: int) -> Pair:
    """A grouped up factor ``(out, r / groups)`` laid out as ``(out, r)``: a group's rows see its own part."""
    out, part = B.shape
    full = np.zeros((out, part * groups))
    for group in range(groups):
        rows = slice(group * out // groups, (group + 1) * out // groups)
        full[rows, group * part : (group + 1) * part] = B[rows]
    return A, full


def expert(A: F64, B: F64, experts: int, index: int) -> Pair:
    """One expert of stacked factors: A ``(E * r, in)`` expert by expert, B ``(out, r * E)`` rank by rank."""
    return A.reshape(experts, -1, A.shape[1])[index], B.reshape(len(B), -1, experts)[:, :, index]
