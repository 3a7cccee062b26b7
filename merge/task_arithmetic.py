"""Task arithmetic (Ilharco et al. 2023): the base plus a weighted sum of deltas; negative weights take away.

``theta_0 + scale * sum_i w_i (theta_i - theta_0)``.

Cost: one pass, fp32 sums in order of the models. When not to use it: with many models the sum grows too long;
lower ``--scale`` (.3 to .7 for more than three), or take a rule that resolves interference (ties, pcb).
"""

from __future__ import annotations

import numpy as np

from paring.merging.models import Mix, Models
from paring.registry import method


@method(
    sees="deltas",
    reference="Ilharco et al.: Editing Models with Task Arithmetic, arXiv:2212.04089, section 2",
    torch=True,
    invariants=("identity", "order", "cancel", "homogeneous"),
)
def task_arithmetic(models: Models) -> Mix:
    """Task arithmetic: the base plus a weighted sum of deltas."""
    return Mix(lambda target: np.array(target.weights))
