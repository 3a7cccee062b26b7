"""numba: a row at a time, which stays in the first cache from its first column to its last."""

from __future__ import annotations

from typing import Any

import numpy as np

from paring.kernels.jit import jit
from paring.kernels.reconstruction import F64, Mask


@jit()
def _prune(row: Any, upper: Any, errors: Any, j: Any) -> None:
    error = row[j] / upper[j, j]
    errors[j] = error
    for k in range(j + 1, len(row)):
        row[k] -= error * upper[j, k]
    row[j] = 0.0


@jit()
def _sweep(block: Any, upper: Any, mask: Any, errors: Any) -> None:
    for i in range(len(block)):
        for j in range(len(upper)):
            if not mask[i, j]:
                _prune(block[i], upper, errors[i], j)


@jit()
def _choose(row: Any, diagonal: Any, mask: Any, keep: Any) -> None:
    """Mark the ``keep`` best of a group; of equal ones the last."""
    for _ in range(keep):
        best, most = -1, -1.0
        for k in range(len(row)):
            size = (row[k] / diagonal[k]) ** 2
            if not mask[k] and size >= most:
                best, most = k, size
        mask[best] = True


@jit()
def _sweep_groups(block: Any, upper: Any, diagonal: Any, keep: Any, of: Any, mask: Any, errors: Any) -> None:
    for i in range(len(block)):
        for j in range(len(upper)):
            if j % of == 0:
                _choose(block[i, j : j + of], diagonal[j : j + of], mask[i, j : j + of], keep)
            if not mask[i, j]:
                _prune(block[i], upper, errors[i], j)


def sweep(block: F64, upper: F64, mask: Mask) -> F64:
    errors = np.zeros(block.shape)
    _sweep(block, np.ascontiguousarray(upper), np.ascontiguousarray(mask), errors)
    return errors


def sweep_groups(block: F64, upper: F64, keep: int, of: int) -> tuple[Mask, F64]:
    mask, errors = np.zeros(block.shape, np.bool_), np.zeros(block.shape)
    _sweep_groups(block, np.ascontiguousarray(upper), np.diag(upper).copy(), keep, of, mask, errors)
    return mask, errors
