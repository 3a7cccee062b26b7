"""Relative importance, which ``ri`` and ``ria`` share."""

from __future__ import annotations

import numpy as np

from paring.pruning.matrix import F32, F64


def importance(weights: F32) -> F64:
    """``|W| / sums of its rows + |W| / sums of its columns``, fp64 ``(out, in)``; zero rows and columns count
    0."""
    size = np.abs(weights).astype(np.float64)
    made = np.zeros_like(size)
    for axis in (0, 1):
        sums = size.sum(axis=axis, keepdims=True)
        made += np.divide(size, sums, out=np.zeros_like(size), where=sums > 0)
    return made
