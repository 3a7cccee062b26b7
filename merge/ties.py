"""TIES (Yadav et al. 2023): trim each delta to its largest entries, elect a sign for every entry, merge what
agrees.

Published: one threshold for each whole model, which keeps ``int(d density) + 1`` entries and ties; the sign
of the sum of what is kept, where that is zero the sign that most entries have; the mean of the kept entries
that have the elected sign. With weights, the sum and the mean are weighted. ``--trim tensor`` gives each
tensor its own threshold.

Cost: a sampled bracket and one pass for the thresholds, one for the majority of signs (not with
``--cancelled zero``), one to write. When not to use it: density .2 throws away much of a delta whose energy
is spread evenly.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from paring.kernels import merging
from paring.merge._common import check_density
from paring.merging.models import F32, F64, Blend, Models, Place, Scope
from paring.registry import method


@method(
    sees="deltas",
    reference="Yadav, Tam, Choshen, Raffel, Bansal: TIES-Merging, arXiv:2306.01708, algorithm 1",
    torch=True,
    invariants=("order", "homogeneous"),
)
def ties(
    models: Models,
    *,
    density: float = 0.2,
    trim: Scope = "model",
    sign: Literal["mass", "count"] = "mass",
    combine: Literal["mean", "sum", "max"] = "mean",
    cancelled: Literal["majority", "zero"] = "majority",
) -> Blend:
    """TIES: trim, elect signs, merge what agrees.

    Options:
        density: share of each delta's entries kept, in (0, 1]
        trim: what shares one threshold: the whole model (published) or each tensor
        sign: elected by the mass of what is kept (published) or by the count of its signs
        combine: the mean (published), sum or largest of the entries that agree
        cancelled: where what is kept cancels, the entries with the sign of the majority of all entries
            (published, one more pass), or zero
    """
    check_density(density)
    thresholds = models.ranked(lambda d: [max(0, d - int(d * density) - 1)], scope=trim)[..., 0]

    def of(place: Place) -> F32:
        found: F32 = thresholds if trim == "model" else thresholds[place.index]
        return found

    def votes(chunk: F32, place: Place) -> F64:
        return np.array(merging.majority(chunk, of(place), place.weights, sign))

    majority = float(np.sign(models.totals(votes))) if cancelled == "majority" and models.n > 1 else 0.0
    return Blend(lambda chunk, place: merging.ties(chunk, of(place), place.weights, sign, combine, majority))
