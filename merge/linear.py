"""Linear: the weighted mean of the models (model soups, Wortsman et al. 2022), or their weighted sum.

``sum_i w_i theta_i``, the weights divided by their sum unless ``normalise`` is off. It needs no base.

Cost: one pass, fp32 sums in order of the models. When not to use it: models that did not start from one base
average to noise.
"""

from __future__ import annotations

import numpy as np

from paring.errors import OptionError
from paring.merging.models import F64, Mix, Models, Target
from paring.registry import method


@method(
    sees="weights",
    reference="Wortsman et al.: Model soups, arXiv:2203.05482",
    torch=True,
    invariants=("identity", "order", "homogeneous"),
)
def linear(models: Models, *, normalise: bool = True) -> Mix:
    """Linear: the weighted mean of the models.

    Options:
        normalise: divide the weights by their sum

    Raises OptionError when weights that are to be normalised sum to zero.
    """

    def coefficients(target: Target) -> F64:
        weights = np.array(target.weights)
        if not normalise:
            return weights
        total, size = sum(target.weights), sum(map(abs, target.weights))
        if not abs(total) > 1e-12 * size:  # nor where they are infinite
            raise OptionError(
                f"the weights of {target.name} sum to zero or beyond all numbers: linear divides by their sum"
            )
        shares: F64 = weights / total
        return shares

    return Mix(coefficients)
