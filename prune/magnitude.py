"""Magnitude pruning: the smallest entries go.

``score[i, j] = |W[i, j]|``. Published in many forms since Han et al. 2015; what matters is what they are
compared with: their matrix (``--scope tensor``), their output's row (``--scope row``), the whole model
(``--scope global``), each group of neighbours (``--keep 2 --of 4``), or whole outputs and inputs by norm
(``--lines outputs``). Counts are exact: of equal magnitudes those that come first by (tensor's name, flat
index) go first. Entries that are zero already are the smallest, and count.

Cost: one pass for the thresholds, one to write; no data is needed. When not to use it: with calibration
statistics at hand, wanda is much better on language models, whose inputs differ in size by orders of
magnitude.
"""

from __future__ import annotations

import numpy as np

from paring.pruning.matrix import F32, Matrix
from paring.registry import method


@method(
    sees="weights",
    reference="Han, Pool, Tran, Dally: Learning both Weights and Connections, arXiv:1506.02626, section 3.1",
    torch=True,
    invariants=("magnitude",),
)
def magnitude(matrix: Matrix) -> F32:
    """Magnitude: the smallest entries go.

    Returns the scores ``(out, in)``, fp32.
    """
    scores: F32 = np.abs(matrix.weights)
    return scores
