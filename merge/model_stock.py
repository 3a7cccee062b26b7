"""Model stock (Jang et al. 2024): between the base and the mean of fine-tunes, as far as their angle says.

``theta_0 + t * mean(delta)``, ``t = n c / (1 + (n-1) c)``, tensor by tensor; ``c`` is the mean cosine between
the deltas of two models. The more they agree the nearer to their mean. Cosines below zero, which the paper
does not meet, count as zero; one model alone is itself. With weights the mean is weighted. Cost: one pass
for the cosines in fp64, one to write. When not to use it: it is made for several runs of one task; deltas of
different tasks are orthogonal, and nearly the base is what comes out.
"""

from __future__ import annotations

import numpy as np

from paring.merge._common import by_angles, shares
from paring.merging.models import F64, Mix, Models, Target
from paring.registry import method


@method(
    sees="deltas",
    reference="Jang, Yun, Han: Model Stock, arXiv:2403.19522, equation 5",
    torch=True,
    invariants=("identity", "order", "homogeneous"),
)
def model_stock(models: Models) -> Mix:
    """Model stock: the mean of fine-tunes, drawn to the base as far as they disagree.

    Raises OptionError for weights that sum to zero.
    """
    n = models.n

    def coefficients(gram: F64, target: Target) -> F64:
        if n == 1:
            return shares(target)
        norms = np.sqrt(np.diag(gram))
        pairs = np.outer(norms, norms)
        cosines = np.divide(gram, pairs, out=np.zeros_like(gram), where=pairs > 0)
        cosine = min(1.0, max(0.0, float(cosines[~np.eye(n, dtype=bool)].mean())))
        out: F64 = n * cosine / (1 + (n - 1) * cosine) * shares(target)
        return out

    return by_angles(models, coefficients)
