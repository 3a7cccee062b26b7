"""SparseGPT (Frantar, Alistarh 2023): prune column by column, and let the rest of each row make up for it.

With H = X X^T / tokens, damped, and U the upper Cholesky factor of its inverse, columns go from left to right
in blocks. What the block keeps is decided at its start by ``(w / U[j, j])^2`` over all its rows; of N:M,
group by group on weights that earlier columns have already updated. A pruned weight's error ``w / U[j, j]``
times ``U[j, j + 1:]`` is taken from the weights to its right.

Here counts are exact: each block keeps its share of the budget, to the entry, and inputs that were always
zero are pruned first *within* it (published: beside it), kept ones unchanged. Sums are in fp64.

Cost: a Cholesky factor and an inverse of ``(in, in)``, then as one product ``(out, in) (in, in)``; 16 bytes
in memory for each entry of that matrix. When not to use it: without enough text (tokens should be several
times the inputs), for it fits to what it sees.
"""

from __future__ import annotations

import numpy as np

from paring.errors import BadValueError, OptionError
from paring.kernels import reconstruction
from paring.pruning import inputs
from paring.pruning.matrix import F64, Budget, Mask, Matrix, Pruned, select
from paring.pruning.refitting import damped
from paring.registry import method


@method(
    sees="grams",
    unit="tensor",
    reference="Frantar, Alistarh: SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot, "
    "arXiv:2301.00774, algorithm 1",
)
def sparsegpt(matrix: Matrix, budget: Budget, *, block: int = 128, damp: float = 0.01) -> Pruned:
    """SparseGPT: prune from left to right, and correct what is left.

    Options:
        block: columns that share one threshold and are decided together
        damp: share of the mean of H's diagonal that is added to it
    """
    if block < 1 or (budget.of and block % budget.of):
        raise OptionError(f"--block {block}: 1 or more, and a multiple of the groups of {budget.of or 1}")
    gram = inputs.gram(matrix)
    dead = np.diag(gram) == 0
    wide = damped(gram, damp)
    wide[dead, dead] = 1.0
    upper = _inverse_factor(wide, matrix.name)
    W = np.where(dead, 0.0, matrix.weights)  # they are pruned first, and if kept at all, as they were
    mask: Mask = np.zeros(W.shape, np.bool_)
    columns = W.shape[1]
    for start in range(0, columns, block):
        stop = min(start + block, columns)
        own = slice(start, stop)
        part, factor = np.ascontiguousarray(W[:, own]), upper[own, own]
        if budget.of:
            mask[:, own], errors = reconstruction.sweep_groups(part, factor, budget.keep, budget.of)
        else:
            keep = budget.keep * stop // columns - budget.keep * start // columns
            mask[:, own] = select(np.abs(part / np.diag(factor)).astype(np.float32), Budget(keep, budget.row))
            errors = reconstruction.sweep(part, factor, mask[:, own])
        W[:, own] = part
        W[:, stop:] -= errors @ upper[own, stop:]
    W[:, dead] = matrix.weights[:, dead]
    return Pruned(mask, np.where(mask, W, 0.0).astype(np.float32))


def _inverse_factor(gram: F64, name: str) -> F64:
    """U, upper triangular ``(in, in)``, with ``U^T U = gram^-1``.

    The Cholesky factor L of the matrix in reversed order is, reversed again, an upper R with
    ``R R^T = gram``; U is its inverse. Raises BadValueError for a matrix that is not positive definite.
    """
    from scipy.linalg import lapack

    lower, failed = lapack.dpotrf(gram[::-1, ::-1], lower=1, clean=1)
    if not failed:
        inverse, failed = lapack.dtrtri(lower, lower=1)
    if failed:
        raise BadValueError(
            f"{name}: the products of inputs are not positive definite: raise --damp, or use more text"
        )
    made: F64 = np.ascontiguousarray(inverse[::-1, ::-1])
    return made
