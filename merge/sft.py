"""SFT (Ansell et al. 2022): sparse fine-tunings, composed by addition.

Of each whole model the ``density`` share of entries that fine-tuning moved most; the sum of these, weighted:
a language and a task, say. Of d entries ``int(d density)`` are kept, at least one, and those equal to the
least of them. The paper trains again with the mask fixed (lottery ticket); this is its first phase alone, on
what has been trained.

Cost: a sampled bracket and one pass for the thresholds, one to write. When not to use it: a delta that was
not trained to be sparse loses the energy of all it drops; where signs clash ties resolves, this only adds.
"""

from __future__ import annotations

import numpy as np

from paring.kernels import masks
from paring.merge._common import check_density, share_of
from paring.merging.models import Blend, Models
from paring.registry import method


@method(
    sees="deltas",
    reference="Ansell et al.: Composable Sparse Fine-Tuning, arXiv:2110.07560, section 3",
    invariants=("order", "cancel", "homogeneous"),
)
def sft(models: Models, *, density: float = 0.1) -> Blend:
    """SFT: the largest entries of each delta, added up.

    Options:
        density: share of each model's entries kept, in (0, 1]
    """
    check_density(density)
    low = models.ranked(lambda d: [d - max(1, share_of(density, d))])[:, 0].copy()
    high = np.full(models.n, np.inf, np.float32)
    return Blend(lambda chunk, place: masks.band_sum(chunk, low, high, place.weights))
