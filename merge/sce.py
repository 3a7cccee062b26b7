"""SCE (Wan et al. 2024, FuseChat): select by variance, calculate coefficients, erase minorities.

*Select*: of every tensor the ``density`` share of entries in which the models' deltas differ most (variance
over the models). *Calculate*: a coefficient for each model and tensor, its share of the sum of squares of
what was selected, times its weight. *Erase*: of every entry the deltas that lack the sign of the sum. What is
left is added up with these coefficients. Of d entries ``int(d density)`` are selected, at least one, and
those of equal variance. ``--normalise`` divides by the sum of the coefficients that were not erased, as
mergekit does.

Cost: a pass for the thresholds, one for the coefficients, one to write. When not to use it: what all models
agree on has no variance and is dropped; with models of one task that is the best of it.
"""

from __future__ import annotations

import numpy as np

from paring.kernels import masks, merging
from paring.merge._common import check_density, share_of
from paring.merging.models import F32, F64, Blend, Models, Place
from paring.registry import method


@method(
    sees="deltas",
    reference="Wan et al.: FuseChat, arXiv:2408.07990, section 3.3",
    invariants=("identity", "order", "homogeneous"),
)
def sce(models: Models, *, density: float = 0.1, normalise: bool = False) -> Blend:
    """SCE: select by variance, calculate coefficients, erase minorities.

    Options:
        density: share of the entries of a tensor selected, in (0, 1]
        normalise: divide by the sum of the coefficients that were not erased
    """
    check_density(density)
    n = models.n
    thresholds = np.zeros((len(models.targets), n, 1), np.float32)
    if density < 1 and models.numel:
        thresholds = models.ranked(
            lambda d: [d - max(1, share_of(density, d))],
            of=lambda chunk: np.broadcast_to(masks.variance(chunk), chunk.shape),
            scope="tensor",
        )

    def select(chunk: F32, place: Place) -> F32:
        chunk *= masks.variance(chunk) >= thresholds[place.index, 0, 0]
        return chunk

    def squares(chunk: F32, place: Place) -> F64:
        return np.diag(merging.gram(select(chunk, place)))

    energies = models.totals(squares, scope="tensor") if models.numel else np.zeros((len(models.targets), n))
    sums = energies.sum(axis=1, keepdims=True)
    ratios = np.divide(energies, sums, out=np.full_like(energies, 1 / n), where=sums > 0)

    def blend(chunk: F32, place: Place) -> F32:
        chunk = select(chunk, place)
        signs = merging.elected(chunk, np.zeros(n, np.float32), place.weights, "mass")
        out, share = masks.erased_sum(chunk, signs, ratios[place.index] * place.weights)
        return np.divide(out, share, out=np.zeros_like(out), where=share != 0) if normalise else out

    return Blend(blend)
