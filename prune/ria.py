"""RIA (Zhang et al. 2024): relative importance and activations.

``(|W[i, j]| / sum |W[i, :]| + |W[i, j]| / sum |W[:, j]|) * ||X_j||^a``, a = .5. As published scores are
compared over the whole matrix; the exponent tempers inputs of large norm, which Wanda follows all the way (a
= 1).

The paper's channel permutation for N:M is not here: it reorders a matrix's inputs, so the groups hold in the
file's own order only if the rows of whatever makes those inputs are reordered with them, and that takes
knowledge of the model that files do not hold. The authors' code drops the permutation, and what it saves is
not N:M.

Cost: as Wanda, and two sums. When not to use it: above 60 % a method that updates survivors is better.
"""

from __future__ import annotations

import numpy as np

from paring.errors import OptionError
from paring.prune._relative import importance
from paring.pruning import inputs
from paring.pruning.matrix import F32, Matrix
from paring.registry import method


@method(
    sees="norms",
    reference="Zhang et al.: Plug-and-Play: An Efficient Post-training Pruning Method for "
    "LLMs, ICLR 2024, eq. 4",
)
def ria(matrix: Matrix, *, exponent: float = 0.5) -> F32:
    """RIA: relative importance times a power of the norms of inputs.

    Options:
        exponent: of the norms, 0 or more; .5 as published

    Returns the scores ``(out, in)``, fp32. Raises OptionError.
    """
    if not 0 <= exponent < np.inf:
        raise OptionError(f"--exponent {exponent}: a power of norms, 0 or more")
    norms = inputs.norms(matrix).astype(np.float64)
    return (importance(matrix.weights) * norms**exponent).astype(np.float32)
