"""DARE (Yu et al. 2024): drop entries of the deltas at random and rescale the rest.

Every entry is kept with probability ``density`` and divided by it, so that its mean stays what it was; then
the weighted sum (``--combine linear``), or signs are elected and what agrees is averaged, as in ties
(``--combine ties``, with this dropping in place of trimming). Each model has a mask of its own, by a
counter-based generator: the same for any number of threads, order of models or layout of files.

Cost: one pass. When not to use it: deltas that are large (beyond .005 or so, the paper finds) do not survive
being dropped; full continued pre-training is such a case.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from paring.kernels import merging
from paring.merge._common import check_density, draws
from paring.merging.models import F32, Blend, Models, Place
from paring.registry import method


@method(
    sees="deltas",
    reference="Yu, Yu, Yu, Huang, Li: Language Models are Super Mario, arXiv:2311.03099, section 3",
    invariants=("order", "cancel", "homogeneous"),
)
def dare(
    models: Models,
    *,
    density: float = 0.5,
    rescale: bool = True,
    combine: Literal["linear", "ties"] = "linear",
    sign: Literal["mass", "count"] = "mass",
    seed: int = 0,
) -> Blend:
    """DARE: drop at random, rescale, then add or elect.

    Options:
        density: probability that an entry is kept, in (0, 1]
        rescale: divide what is kept by the density (published)
        combine: linear, the weighted sum, or ties, the mean of the entries that agree with the elected sign
        sign: with ties, elected by the mass of what is kept or by the count of its signs
        seed: of the random numbers
    """
    check_density(density)
    drawn, gain = draws(models, seed), 1 / density if rescale else 1.0
    everything = np.zeros(models.n, np.float32)

    def blend(chunk: F32, place: Place) -> F32:
        chunk *= drawn(place, chunk.shape[1]) < density
        if combine == "linear":
            return merging.weighted_sum(chunk, place.weights * gain)
        found = merging.ties(chunk, everything, place.weights, sign, "mean", 0.0)
        found *= np.float32(gain)
        return found

    return Blend(blend)
