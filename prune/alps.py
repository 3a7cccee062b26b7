"""ALPS (Meng et al. 2024): the mask by ADMM on the layer's own problem, then the best values for it.

With G = X X^T / tokens, damped and scaled to a diagonal of ones, find W of few entries that minimises
``tr((W - D) G (W - D)^T)``. A dense copy B and a sparse copy S take turns:

    B = (D G - V + rho S) (G + rho)^-1      S = best entries of B + V / rho      V += rho (B - S)

rho begins at .1 and grows every third round, by 1.3, 1.2 or 1.1 after how many entries changed sides; while
none ever has, it is divided by five and all begins anew. When the mask has settled, conjugate gradients give
what is kept its values (:mod:`paring.pruning.refitting`: published are ten steps of one system over the whole
matrix; here each row takes its own).

Cost: the eigenvalues of ``(in, in)`` and some 30 to 300 rounds of two products ``(out, in) (in, in)`` each:
minutes for large matrices, the most of all methods here. When not to use it: when SparseGPT or ``wanda
--refit`` will do, which at 50 % they nearly do.
"""

from __future__ import annotations

import numpy as np

from paring.errors import BadValueError, OptionError
from paring.pruning import inputs
from paring.pruning.matrix import F64, Budget, Mask, Matrix, Pruned, select
from paring.pruning.refitting import damped, solve
from paring.registry import method

_EVERY, _LEAST, _MOST = 3, 30, 300  # rounds
_SMALLEST, _LARGEST = 1e-6, 1e6  # rho
#: where more than this share of the entries kept have changed, rho grows by this factor
_GROWTH = ((0.1, 1.3), (0.005, 1.2), (0.0, 1.1))


@method(
    sees="grams",
    unit="tensor",
    reference="Meng, Behdin, Wang, Mazumder: ALPS: Improved Optimization for Highly Sparse "
    "One-Shot Pruning for LLMs, arXiv:2406.07831, algorithm 1",
)
def alps(matrix: Matrix, budget: Budget, *, rho: float = 0.1, damp: float = 0.01, steps: int = 10) -> Pruned:
    """ALPS: ADMM chooses the mask, conjugate gradients the values.

    Options:
        rho: how strongly the sparse copy pulls at first
        damp: share of the mean of G's diagonal that is added to it
        steps: of conjugate gradients, at most
    """
    if not 0 < rho < np.inf:
        raise OptionError(f"--rho {rho}: a number above 0")
    if steps < 0:
        raise OptionError(f"--steps {steps}: 0 or more")
    gram = damped(inputs.gram(matrix), damp)
    diagonal = np.diag(gram)
    scale = np.sqrt(np.where(diagonal > 0, diagonal, 1.0))
    scaled = gram / scale / scale[:, None]
    dense: F64 = matrix.weights.astype(np.float64) * scale
    mask = _mask(dense, scaled, budget, rho, matrix.name)
    refitted = solve(dense, dense, mask, scaled, steps, 1e-4)
    return Pruned(mask, (refitted / scale).astype(np.float32))


def _mask(dense: F64, gram: F64, budget: Budget, rho: float, name: str) -> Mask:
    """Which entries of ``dense (out, in)`` ADMM settles on."""
    values, vectors = np.linalg.eigh(gram)
    if values[0] < -1e-6 * values[-1]:
        raise BadValueError(f"{name}: the products of inputs are not those of any inputs: calibrate again")
    values = np.maximum(values, 0.0)
    goal = dense @ gram
    mask = before = _best(dense, budget)
    kept = max(1, int(mask.sum()))
    S, V, moved = np.where(mask, dense, 0.0), np.zeros_like(dense), False
    for count in range(1, _MOST + 1):
        B = ((goal - V + rho * S) @ vectors) / (values + rho) @ vectors.T
        S = B + V / rho
        mask = _best(S, budget)
        S = np.where(mask, S, 0.0)
        V += rho * (B - S)
        if count % _EVERY:
            continue
        changed = int((mask != before).sum())
        before = mask
        if changed and (moved or changed > 0.005 * kept):
            moved = True
            if count >= _LEAST and changed < 3e-4 * kept:
                break
            rho = min(_LARGEST, rho * next(factor for share, factor in _GROWTH if changed > share * kept))
        elif moved or rho <= _SMALLEST:  # inputs that do not mix never move it
            break
        else:
            rho /= 5
            mask = before = _best(dense, budget)
            S, V = np.where(mask, dense, 0.0), np.zeros_like(dense)
    return mask


def _best(values: F64, budget: Budget) -> Mask:
    """The mask of the largest magnitudes, compared in fp32."""
    return select(np.abs(values).astype(np.float32), budget)
