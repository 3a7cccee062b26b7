"""NuSLERP (mergekit): slerp that takes weights, of tensors or of their rows.

``t = w_1 / (w_0 + w_1)``; then as slerp, but linear only where the vectors are parallel to within rounding.
``--per row`` gives every row (the last axis of a tensor) an angle of its own. It turns whatever vectors it is
given: weights of checkpoints, updates of adapters. Cost: as slerp; ``--per row`` takes one pass in all. When
not to use it: rows of a convolution's kernel are too short for an angle to mean much.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from paring.merge._common import by_angles, refuse_unless_two, shares
from paring.merge._sphere import arc
from paring.merging.models import F32, Blend, Mix, Models, Place
from paring.registry import method

#: a cosine beyond this is that of parallel vectors, rounded
_PARALLEL = 1 - 1e-12


@method(
    sees="weights",
    reference="Goddard et al.: Arcee's MergeKit, arXiv:2403.13257; merge method nuslerp",
    unit="row",
    invariants=("order", "homogeneous"),
)
def nuslerp(models: Models, *, per: Literal["tensor", "row"] = "tensor") -> Mix | Blend:
    """NuSLERP: two models, interpolated along a great circle by their weights.

    Options:
        per: what has an angle of its own: each tensor or each row

    Raises OptionError for other than two models, and for weights that sum to zero.
    """
    refuse_unless_two(models, "nuslerp")
    ways = {target.name: float(shares(target)[1]) for target in models.targets}
    if per == "tensor":
        return by_angles(models, lambda gram, target: arc(gram, ways[target.name], _PARALLEL))

    def blend(chunk: F32, place: Place) -> F32:
        width = place.target.shape[-1] if place.target.shape else 1
        rows = chunk.reshape(2, -1, width)
        grams = np.einsum("irc,jrc->rij", rows, rows, dtype=np.float64)
        turned = arc(grams, ways[place.target.name], _PARALLEL).astype(np.float32)
        out: F32 = turned[:, :1] * rows[0] + turned[:, 1:] * rows[1]
        return out.reshape(-1)

    return Blend(blend)
