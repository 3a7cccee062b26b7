"""The specification of :mod:`paring.kernels.reconstruction` in plain numpy."""

from __future__ import annotations

import numpy as np

from paring.kernels.reconstruction import F64, Mask


def _prune(block: F64, upper: F64, kept: Mask, j: int) -> F64:
    """Prune column j where it is not ``kept (out,)``; returns its errors."""
    errors: F64 = np.where(kept, 0.0, block[:, j] / upper[j, j])
    block[:, j] = np.where(kept, block[:, j], 0.0)
    block[:, j + 1 :] -= errors[:, None] * upper[j, j + 1 :]
    return errors


def sweep(block: F64, upper: F64, mask: Mask) -> F64:
    columns = [_prune(block, upper, mask[:, j], j) for j in range(len(upper))]
    return np.stack(columns, axis=1)


def sweep_groups(block: F64, upper: F64, keep: int, of: int) -> tuple[Mask, F64]:
    mask = np.zeros(block.shape, np.bool_)
    errors = np.zeros(block.shape)
    for j in range(len(upper)):
        if j % of == 0:
            scores = (block[:, j : j + of] / np.diag(upper)[j : j + of]) ** 2
            best = np.argsort(scores, axis=1, kind="stable")[:, of - keep :]
            np.put_along_axis(mask[:, j : j + of], best, True, axis=1)
        errors[:, j] = _prune(block, upper, mask[:, j], j)
    return mask, errors
