"""Relative importance (Zhang et al. 2024), the factor of RIA that needs no data.

``|W[i, j]| / sum |W[i, :]| + |W[i, j]| / sum |W[:, j]|``: large among what its output hears or its input
says. No row and no column dies of being small throughout, which is what magnitude does wrong at high
sparsity.

Cost: two sums over the matrix. When not to use it: with statistics at hand ``ria`` is better.
"""

from __future__ import annotations

import numpy as np

from paring.prune._relative import importance
from paring.pruning.matrix import F32, Matrix
from paring.registry import method


@method(
    sees="weights",
    reference="Zhang et al.: Plug-and-Play: An Efficient Post-training Pruning Method for "
    "LLMs, ICLR 2024, eq. 2",
)
def ri(matrix: Matrix) -> F32:
    """RI: weights relative to their row's and column's sums.

    Returns the scores ``(out, in)``, fp32.
    """
    return importance(matrix.weights).astype(np.float32)
