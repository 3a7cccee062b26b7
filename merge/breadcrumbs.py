"""Model breadcrumbs (Davari and Belilovsky 2024): neither the largest entries of a delta nor the small ones.

Of every tensor of every delta the ``gamma`` largest entries go as outliers, the next ``density`` stay, the
rest goes; then the weighted sum. ``--per row`` counts in every row (the last axis) instead, as the authors'
code does. Of d entries ``int(d gamma)`` go and ``int(d density)`` stay, at least one; entries equal to the
smallest or the largest that stay stay too.

Cost: a pass for the thresholds and one to write; ``--per row`` takes one pass and partitions each row. When
not to use it: with one model, or models of one task, the outliers are what was learnt.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from paring.errors import OptionError
from paring.kernels import masks, merging
from paring.merge._common import check_density, share_of
from paring.merging.models import F32, Blend, Models, Place
from paring.registry import method


@method(
    sees="deltas",
    reference="Davari, Belilovsky: Model Breadcrumbs, arXiv:2312.06795, section 3",
    unit="row",
    invariants=("order", "cancel", "homogeneous"),
)
def breadcrumbs(
    models: Models,
    *,
    density: float = 0.15,
    gamma: float = 0.01,
    per: Literal["tensor", "row"] = "tensor",
) -> Blend:
    """Breadcrumbs: drop outliers and small entries, add the rest.

    Options:
        density: share of the entries kept, in (0, 1]
        gamma: share of the largest entries dropped, in [0, 1)
        per: what is counted by itself: each tensor (published) or each row (as in the authors' code)
    """
    check_density(density)
    if not 0 <= gamma < 1 or density + gamma > 1 + 1e-9:
        raise OptionError(
            f"--density {density} --gamma {gamma}: shares that are kept and dropped of one whole"
        )

    def ends(d: int) -> list[int]:
        """The ascending positions of the smallest and the largest entry that stay."""
        top = d - share_of(gamma, d)
        return [max(0, top - max(1, share_of(density, d))), top - 1]

    if per == "tensor":
        low, high = np.moveaxis(models.ranked(ends, scope="tensor"), -1, 0).copy()
        return Blend(
            lambda chunk, place: masks.band_sum(chunk, low[place.index], high[place.index], place.weights)
        )

    def blend(chunk: F32, place: Place) -> F32:
        width = place.target.shape[-1] if place.target.shape else 1
        size = np.abs(chunk).reshape(models.n, -1, width)
        least, most = np.moveaxis(np.partition(size, ends(width), axis=-1)[..., ends(width)], -1, 0)
        kept = (size >= least[..., None]) & (size <= most[..., None])
        return merging.weighted_sum(chunk * kept.reshape(chunk.shape), place.weights)

    return Blend(blend)
