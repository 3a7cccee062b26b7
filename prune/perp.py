"""PERP (Zimmer et al. 2023): after pruning, retrain a small part of the parameters, inside the mask.

Biases, norms and low-rank updates, under one percent of a model, recover nearly what retraining everything
does. Updates keep the mask and are merged in fp32, so that the result is a plain checkpoint of exactly the
same sparsity: MaskLoRA trains ``W + s (M * BA)``, ScaleLoRA ``W * BA``; LoRA-Prune trains without the mask
and drops what left it; LoRA stays beside the sparse weights, as a PEFT adapter in ``OUT/adapter``. The output
head is trained through an ordinary LoRA. ``--train all`` is full retraining, under the masks.

ScaleLoRA as published begins with all ranks of A and B at ``1 / sqrt(r)``, alike, and never leaves rank one;
here one rank begins at ones and the others at nothing in B, so that ``BA = 1`` and the rank grows.

``--reconstruct N`` first reconstructs block by block (``--retrain reconstruct``), N steps a block.
``--cycles C`` prunes by magnitude in C cycles along a cubic schedule, from the dense weights to the counts by
tensor that the pruning method has found, and retrains after each.

Cost: forward and backward through the model, without gradients of frozen weights; optimizer state for what is
trained. When not to use it: without text of the kind that the model is for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from paring.registry import method
from paring.retraining.kinds import Kind, Optimizer

if TYPE_CHECKING:
    from paring.retraining.pupil import Pupil
else:
    Pupil = object  # the registry reads signatures, and needs no torch for that


@method(
    sees="model",
    reference="Zimmer, Andoni, Spiegel, Pokutta: PERP, arXiv:2312.15230, sections 3.1 to 3.3; APOLLO: Zhu et "
    "al., arXiv:2412.05270",
)
def perp(
    pupil: Pupil,
    *,
    train: str = "biases,norms,adapters",
    adapter: Kind = "masklora",
    rank: int = 16,
    alpha: float = 32.0,
    steps: int = 200,
    lr: float | None = None,
    batch: int = 4,
    accumulate: int = 1,
    warmup: float = 0.1,
    weight_decay: float = 0.0,
    optimizer: Optimizer = "adamw",
    projection: int = 256,
    checkpointing: bool = False,
    cycles: int = 1,
    reconstruct: int = 0,
    reconstruct_lr: float = 3e-4,
    samples: int = 128,
    relax: bool = False,
    save_every: int = 50,
) -> None:
    """PERP: retrain biases, norms and adapters inside the mask, on text.

    Options:
        train: what is trained, some of biases,norms,head,adapters; or all
        adapter: how adapters keep the mask
        rank: of the adapters
        alpha: adapters are scaled by alpha / rank
        steps: updates in all
        lr: learning rate, after warm-up and before its linear decay; 1e-3 by default, 5e-5 for all
        batch: windows at a time
        accumulate: batches that make one update
        warmup: share of the steps in which the learning rate rises
        weight_decay: decoupled from the gradient
        optimizer: AdamW, or one that keeps little state
        projection: rank of APOLLO's projection
        checkpointing: compute activations twice rather than keep them
        cycles: prune in this many cycles, retraining after each
        reconstruct: steps a block of block-wise reconstruction before that
        reconstruct_lr: learning rate of the reconstruction
        samples: windows of text that the reconstruction uses
        relax: let the reconstruction learn the masks too (PDP)
        save_every: steps from one checkpoint to the next
    """
    from paring.retraining.fitting import Fit
    from paring.retraining.perp import Perp, retrain
    from paring.retraining.subsets import parse

    names = parse(train)
    rate = lr if lr is not None else 5e-5 if names == ["all"] else 1e-3
    fit = Fit(
        steps, rate, accumulate, warmup, weight_decay, optimizer, projection, seed=pupil.seed,
        save_every=save_every,
    )  # fmt: skip
    first = Fit(reconstruct, reconstruct_lr, seed=pupil.seed) if reconstruct else None
    retrain(
        pupil,
        Perp(fit, batch, tuple(names), adapter, rank, alpha, checkpointing, cycles, first, samples, relax),
    )
