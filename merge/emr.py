"""EMR (Huang et al. 2024): elect, mask, rescale: one unified delta, and for each model a mask and a scale.

``gamma`` is the sign of the sum of the deltas (minus where it is zero), the *unified* delta has that sign and
the largest magnitude among the deltas that agree with it. Model t has back ``lambda_t M_t unified`` with the
mask ``M_t`` of entries where its own delta agrees and ``lambda_t = sum |tau_t| / sum |M_t unified|``. It is
not one merged model, but as many as were put in, for little more than the size of one: ``-o
NAME.paring.safetensors`` writes them all to one packed file, of which ``NAME.paring.safetensors#2`` is one
model's update; any other output gets the model of ``--task``.

The authors' code adds up means of tensors in ``lambda``, so that small tensors weigh as much as large ones;
here it is the paper's plain sums. Cost: one pass for the scales, one to write. When not to use it: where a
single model must serve all tasks.
"""

from __future__ import annotations

import numpy as np

from paring.errors import OptionError
from paring.merging.models import F32, F64, Models, Place
from paring.merging.tasks import Tasks
from paring.registry import method


@method(
    sees="deltas",
    reference="Huang et al.: EMR-Merging, arXiv:2405.17461, section 3",
    invariants=("identity", "homogeneous"),
)
def emr(models: Models, *, task: int = 1) -> Tasks:
    """EMR: the model of one task, from the unified delta, its mask and its scale.

    Options:
        task: whose model is written, from 1 for the first, where the output is no packed file
    """
    if not 1 <= task <= models.n:
        raise OptionError(f"--task {task}: there are {models.n} models, counted from 1")

    def sizes(chunk: F32, place: Place) -> F64:
        found = unified(chunk)
        agree = chunk * found > 0
        return np.array(
            [
                np.abs(chunk).sum(axis=1, dtype=np.float64),
                (agree * np.abs(found)).sum(axis=1, dtype=np.float64),
            ]
        )

    whole, masked = models.totals(sizes) if models.numel else np.zeros((2, models.n))
    scales = np.divide(whole, masked, out=np.zeros(models.n), where=masked > 0)
    return Tasks(lambda chunk, place: unified(chunk), scales, task - 1)


def unified(deltas: F32) -> F32:
    """The elected sign with the largest magnitude that has it, ``(k,)``."""
    sign = np.where(deltas.sum(axis=0) > 0, np.float32(1), np.float32(-1))
    out: F32 = sign * np.maximum(deltas * sign, 0).max(axis=0)
    return out
