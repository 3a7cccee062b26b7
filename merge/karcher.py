"""Karcher: the mean of directions on the sphere (Karcher 1977), tensor by tensor; slerp for any number.

With ``u_i`` the direction of model i, the point ``u`` that has ``sum_i w_i log_u(u_i) = 0``, times the
weighted mean of the norms. All is computed from the inner products of the models, in fp64: the result is a
weighted sum. Tensors that are zero have no direction and are left out of its mean. Of adapters, the updates
take the place of weights. Cost: one pass for the inner products, one to write. When not to use it: directions
that cancel have no mean (there it is the weighted mean), and far apart ones have one that means little.
"""

from __future__ import annotations

from paring.errors import OptionError
from paring.merge._common import by_angles, shares
from paring.merge._sphere import centre
from paring.merging.models import F64, Mix, Models, Target
from paring.registry import method


@method(
    sees="weights",
    reference="Karcher: Riemannian Center of Mass and Mollifier Smoothing, CPAM 30 (1977)",
    torch=True,
    invariants=("identity", "order", "homogeneous"),
)
def karcher(models: Models) -> Mix:
    """Karcher: the mean direction of any number of models, with their mean norm.

    Raises OptionError for weights that are negative or all zero.
    """

    def coefficients(gram: F64, target: Target) -> F64:
        if min(target.weights) < 0:
            raise OptionError(f"{target.name} has a negative weight, and karcher is a mean")
        return centre(gram, shares(target))

    return by_angles(models, coefficients)
