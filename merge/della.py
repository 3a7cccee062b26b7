"""DELLA (Deep et al. 2024), MAGPRUNE: drop at random, small entries more often, then elect and average.

In every row (the last axis) the magnitudes are ranked, ``r`` from 0 for the smallest to 1 for the largest;
an entry is kept with probability ``q = density - epsilon + 2 epsilon r`` and divided by it, each by its own,
so that its mean stays what it was. Then, as in ties, the sign of the weighted sum is elected and the entries
that have it are averaged. Equal magnitudes rank in their order in the row; a row of one entry has ``r = .5``.
The published lambda is ``--scale``.

Cost: one pass, with a sort of every row: about eight times that of dare. When not to use it: on tensors of
short rows (kernels of convolutions) the ranks mean little; dare is the same without them.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from paring.errors import OptionError
from paring.kernels import merging
from paring.merge._common import check_density, draws
from paring.merging.models import F32, Blend, Models, Place
from paring.registry import method


@method(
    sees="deltas",
    reference="Deep, Bhardwaj, Poria: DELLA-Merging, arXiv:2406.11617, section 3",
    unit="row",
    invariants=("order", "cancel", "homogeneous"),
)
def della(
    models: Models,
    *,
    density: float = 0.5,
    epsilon: float = 0.1,
    sign: Literal["mass", "count"] = "mass",
    seed: int = 0,
) -> Blend:
    """DELLA: drop by rank and chance, elect signs, average what agrees.

    Options:
        density: mean probability that an entry is kept, in (0, 1]
        epsilon: how far the smallest and the largest entries' probabilities are from it
        sign: elected by the mass of what is kept (published) or by the count of its signs
        seed: of the random numbers
    """
    check_density(density)
    if epsilon < 0 or density - epsilon <= 0 or density + epsilon > 1 + 1e-9:
        raise OptionError(f"--density {density} --epsilon {epsilon}: probabilities outside (0, 1]")
    drawn = draws(models, seed)
    everything = np.zeros(models.n, np.float32)

    def blend(chunk: F32, place: Place) -> F32:
        width = place.target.shape[-1] if place.target.shape else 1
        keep = ranks(chunk.reshape(-1, width)).reshape(chunk.shape)
        keep *= np.float32(2 * epsilon)
        keep += np.float32(density - epsilon)
        chunk *= drawn(place, chunk.shape[1]) < keep
        chunk /= keep
        return merging.ties(chunk, everything, place.weights, sign, "mean", 0.0)

    return Blend(blend)


def ranks(rows: F32) -> F32:
    """Ranks of the magnitudes within each row ``(rows, k)``, from 0 to 1; equal ones in order of entries."""
    width = rows.shape[1]
    if width == 1:
        return np.full(rows.shape, 0.5, np.float32)
    # magnitude bits over places: sorting numbers is faster than sorting by them, and stable
    keyed = np.abs(rows).view(np.uint32).astype(np.uint64) << np.uint64(32)
    keyed |= np.arange(width, dtype=np.uint64)
    keyed.sort(axis=1)
    places = (keyed & np.uint64(0xFFFFFFFF)).astype(np.intp)
    out = np.empty(rows.shape, np.float32)
    np.put_along_axis(out, places, np.linspace(0, 1, width, dtype=np.float32)[None], axis=1)
    return out
