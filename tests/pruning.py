"""Matrices with inputs, for tests of pruning methods."""

from __future__ import annotations

import numpy as np

from paring import registry
from paring.pruning.matrix import Inputs, Matrix, select


def inputs(X, gram=True):
    """What calibration would say of inputs ``X (in, tokens)``."""
    X = X.astype(np.float64)
    products = X @ X.T / X.shape[1]
    norms = np.sqrt(np.diag(products)).astype(np.float32)
    return Inputs(norms, X.shape[1], products.astype(np.float32) if gram else None)


def case(rows=24, columns=32, tokens=200, seed=0, dead=(), grid=None, gram=True):
    """A matrix with correlated inputs of unequal norms; ``grid`` rounds weights, so that many are equal."""
    rng = np.random.default_rng(seed)
    mixing = rng.standard_normal((columns, columns)) * rng.exponential(size=(columns, 1))
    X = mixing @ rng.standard_normal((columns, tokens))
    X[list(dead)] = 0
    W = rng.standard_normal((rows, columns)).astype(np.float32)
    if grid:
        W = np.round(W / grid).astype(np.float32) * np.float32(grid)
    return Matrix("layer.weight", W, inputs(X, gram)), X


def pruned(name, matrix, budget, **options):
    """Mask and weights, whatever kind the method is."""
    method = registry.load("prune", name)
    if method.unit == "tensor":
        found = method.function(matrix, budget, **method.parse(options))
        return found.mask, found.weights
    mask = select(method.function(matrix, **method.parse(options)), budget)
    return mask, np.where(mask, matrix.weights, np.float32(0))
