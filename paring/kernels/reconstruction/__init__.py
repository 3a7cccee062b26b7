"""SparseGPT's inner loop: what a pruned entry leaves undone, the entries to its right make up for.

A block of columns ``block (out, b)``, fp64, is changed in place, column by column. ``upper (b, b)``, fp64, is
the block's part of the upper Cholesky factor of the inverse of the inputs' Gram matrix. Of each entry that is
pruned its error, ``entry / upper[j, j]``, is returned, ``(out, b)``; of those that stay it is zero. Rows do
not see each other. ``reference.py`` is the specification in plain numpy, ``cpu.py`` has numba loops.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


def sweep(block: F64, upper: F64, mask: Mask) -> F64:
    """Prune what ``mask (out, b)`` does not keep; returns the errors."""
    from paring.kernels.reconstruction import cpu

    return cpu.sweep(block, upper, mask)


def sweep_groups(block: F64, upper: F64, keep: int, of: int) -> tuple[Mask, F64]:
    """Of each ``of`` columns keep ``keep`` in every row, chosen by ``(entry / upper[j, j])^2`` when the sweep
    comes to them; of equal ones the first go first. Returns the mask ``(out, b)`` and the errors.

    ``b`` must be a multiple of ``of``.
    """
    from paring.kernels.reconstruction import cpu

    made: tuple[Any, F64] = cpu.sweep_groups(block, upper, keep, of)
    return made
