"""Wanda (Sun et al. 2023): weights times the norms of their inputs, compared within each output row.

``score[i, j] = |W[i, j]| * ||X_j||``, X_j the j-th input over all tokens. Nothing is trained and nothing
updated. The norm here is a root mean square over tokens where the paper's is a root of a mean over sequences,
which multiplies all scores of a matrix alike. Published with statistics taken block after block on the pruned
prefix (``paring calibrate --sequential``); statistics of the dense model need no second calibration for
another sparsity, and may lose a little.

Cost: one pass, and a vector of statistics a matrix. When not to use it: its scores say nothing across
matrices, so not with one threshold over the model; above 60 % a method that updates survivors is better.
"""

from __future__ import annotations

import numpy as np

from paring.pruning import inputs
from paring.pruning.matrix import F32, Matrix
from paring.registry import method


@method(
    sees="norms",
    unit="row",
    reference="Sun, Liu, Bair, Kolter: A Simple and Effective Pruning Approach for "
    "LLMs, arXiv:2306.11695, eq. 1",
)
def wanda(matrix: Matrix) -> F32:
    """Wanda: weights times the norms of their inputs.

    Returns the scores ``(out, in)``, fp32.
    """
    scores: F32 = np.abs(matrix.weights) * inputs.norms(matrix)
    return scores
