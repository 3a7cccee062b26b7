"""PDP (Cho, Adya, Naik 2023): differentiable pruning without parameters.

A weight is used as ``m * w`` with ``m = sigmoid((w^2 - t^2) / tau)``, the softmax of ``[t^2, w^2] / tau``;
``t`` is half way between the largest dropped and the smallest kept magnitude of the layer. Weights near the
border get more gradient, ``m + 2 w^2 m (1 - m) / tau`` times that of the masked weight, and may cross it.
After a dense warm-up one ranking of all magnitudes gives each layer its own target, which is then raised to
in equal steps. At the end the masks are hardened, to exact counts. In a training loop of your own:

    pdp = attach(model, sparsity=0.9)
    for epoch in range(epochs):
        pdp.epoch(epoch)  # dense for 16 epochs, then .015 of the target more each epoch
        ...  # train as before
    gap = pdp.gap()  # what hardening will change
    pdp.harden()  # from here on the masks are fixed: fine-tune if you like
    pdp.bake()  # plain weights with exact zeros

The published ``tau`` (1e-4) is not free of scale: on weights of standard deviation .01, as language models
have them, it leaves nearly every mask soft. The default is therefore relative, ``tau = .05 t^2``.

``--retrain pdp`` is that loop on text, from the dense weights, with the counts by tensor that the pruning
method has found; only the choice of which weights go, and their values, are learned anew. Its warm-up is a
share of the steps: the automatic one (``attach(..., warmup=None)``) waits for an accuracy that a network
trained from nothing comes to, and a model that is trained already has it, or never will.

Cost: as full training, and two selections of an order statistic a layer and step. When not to use it:
where there is little text or memory; ``--retrain perp --reconstruct N --relax`` needs less of both.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from paring.registry import method
from paring.retraining.kinds import Optimizer

if TYPE_CHECKING:
    from torch import nn

    from paring.pruning.relaxing import Pdp
    from paring.retraining.pupil import Pupil
else:
    Pupil = object  # the registry reads signatures, and needs no torch for that


def attach(model: nn.Module, sparsity: float | str | None = None, **options: Any) -> Pdp:
    """Put soft masks on a torch model: see :func:`paring.pruning.relaxing.attach`."""
    from paring.pruning import relaxing

    return relaxing.attach(model, sparsity, **options)


@method(
    sees="model",
    reference="Cho, Adya, Naik: PDP, arXiv:2305.11203, section 3",
)
def pdp(
    pupil: Pupil,
    *,
    steps: int = 200,
    lr: float = 5e-5,
    batch: int = 4,
    accumulate: int = 1,
    warmup: float = 0.1,
    optimizer: Optimizer = "adamw",
    dense_share: float = 0.1,
    hard_share: float = 0.25,
    relative: float = 0.05,
    tau: float | None = None,
) -> None:
    """PDP: train the dense weights under soft masks that harden at the end.

    Options:
        steps: updates in all
        lr: learning rate, after warm-up and before its linear decay
        batch: windows at a time
        accumulate: batches that make one update
        warmup: share of the steps in which the learning rate rises
        optimizer: AdamW, or one that keeps little state
        dense_share: share of the steps before pruning begins
        hard_share: share of the steps after the masks are hardened; in between, targets rise linearly
        relative: the temperature in units of the squared threshold
        tau: the temperature as a constant (published: 1e-4)
    """
    from paring.retraining.fitting import Fit
    from paring.retraining.soft import train_soft

    fit = Fit(steps, lr, accumulate, warmup, optimizer=optimizer, seed=pupil.seed)
    train_soft(pupil, fit, batch, (dense_share, 1 - hard_share), tau=tau, relative=relative)
