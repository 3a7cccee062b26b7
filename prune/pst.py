"""PST (Li et al. 2022): a low-rank update, and a mask by importance that is learned in low rank too.

From the dense weights W, frozen: ``W' = W + UV``, ``S = |W'| + AB + R 1^T + 1 C^T``; of every matrix the
lowest S go, as many as the pruning method has taken from it, along a cubic schedule, and S learns through the
mask as if it were not rounded. The result is ``M * W'``, plain sparse weights. With no step taken it is
magnitude pruning.

Cost: as PERP, with two products a matrix and one ranking of its entries a step. When not to use it: for N:M,
which its ranking knows nothing of.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from paring.registry import method
from paring.retraining.kinds import Optimizer

if TYPE_CHECKING:
    from paring.retraining.pupil import Pupil
else:
    Pupil = object  # the registry reads signatures, and needs no torch for that


@method(
    sees="model",
    reference="Li, Luo, Tan, Wang, Huang, Li, Bai: Parameter-Efficient Sparsity for Large Language Models "
    "Fine-Tuning, arXiv:2205.11005, sections 3 and 4",
)
def pst(
    pupil: Pupil,
    *,
    steps: int = 200,
    lr: float = 5e-4,
    batch: int = 4,
    accumulate: int = 1,
    warmup: float = 0.1,
    optimizer: Optimizer = "adamw",
    rank: int = 8,
    score_rank: int = 8,
    start: float = 0.1,
    end: float = 0.7,
) -> None:
    """PST: a low-rank update and a mask by learned low-rank importance, from the dense weights.

    Options:
        steps: updates in all
        lr: learning rate, after warm-up and before its linear decay
        batch: windows at a time
        accumulate: batches that make one update
        warmup: share of the steps in which the learning rate rises
        optimizer: AdamW, or one that keeps little state
        rank: of the update of the weights
        score_rank: of the update of the importance
        start: share of the steps before pruning begins
        end: share of the steps at which it is complete
    """
    from paring.retraining.fitting import Fit
    from paring.retraining.soft import train_pst

    fit = Fit(steps, lr, accumulate, warmup, optimizer=optimizer, seed=pupil.seed)
    train_pst(pupil, rank, score_rank, fit, batch, (start, end))
