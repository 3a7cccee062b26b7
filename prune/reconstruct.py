"""Block-wise reconstruction: each pruned block learns to do what its dense original does.

Block after block, on the inputs that what comes before it now gives, the mean squared distance from the dense
block's outputs is made small: ``min mean (f(X; M * W') - f(X; W))^2``, f the block, X its inputs in the
pruned model, W its dense weights, M the mask. It needs no labels, no backward pass through the whole model
and the optimizer state of one block only; little text goes a long way.

Cost: two blocks in memory, and the states of all samples. When not to use it: alone, where text of the
domain is at hand; ``--retrain perp --reconstruct N`` does both.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from paring.registry import method
from paring.retraining.kinds import Kind

if TYPE_CHECKING:
    from paring.retraining.pupil import Pupil
else:
    Pupil = object  # the registry reads signatures, and needs no torch for that


@method(
    sees="model",
    reference="Zimmer, Andoni, Spiegel, Pokutta: PERP, arXiv:2312.15230, section 3.3 (layer-wise "
    "reconstruction); block windows after arXiv:2510.14444",
)
def reconstruct(
    pupil: Pupil,
    *,
    steps: int = 100,
    lr: float = 3e-4,
    batch: int = 4,
    samples: int = 128,
    warmup: float = 0.1,
    train: str = "all",
    adapter: Kind = "masklora",
    rank: int = 16,
    alpha: float = 32.0,
    relax: bool = False,
) -> None:
    """Reconstruction: teach each pruned block, one after another, what its dense original does.

    Options:
        steps: updates of each block
        lr: learning rate, after warm-up and before its linear decay
        batch: windows at a time
        samples: windows of text that are used
        warmup: share of the steps in which the learning rate rises
        train: what of a block is trained, some of biases,norms,adapters; or all
        adapter: how adapters keep the mask
        rank: of the adapters
        alpha: adapters are scaled by alpha / rank
        relax: learn the masks too, under PDP's soft masks from the dense weights
    """
    from paring.retraining.blocks import Reconstruction
    from paring.retraining.blocks import reconstruct as run
    from paring.retraining.fitting import Fit
    from paring.retraining.subsets import parse

    fit = Fit(steps, lr, warmup=warmup, seed=pupil.seed)
    how = Reconstruction(fit, samples, batch, tuple(parse(train)), adapter, rank, alpha, relax)
    pupil.notes["block_errors"] = run(pupil, how)
