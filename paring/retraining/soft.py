"""Training that finds its masks as it goes, from the dense weights: PDP and PST on a model in memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from paring.errors import OptionError
from paring.pruning.relaxing import Pdp, attach
from paring.pruning.schedules import cubic
from paring.retraining.adapters import Pst
from paring.retraining.fitting import Fit, fit
from paring.retraining.pupil import Pupil


def attached(pupil: Pupil, module: nn.Module, targets: Mapping[str, int], **temperature: Any) -> Pdp:
    """PDP's soft masks on the weights in ``module`` that ``targets`` names, to drop so many entries of each,
    or what the pupil's pattern drops of each group; ``temperature`` is as :func:`attach` has it."""
    keep, of = pupil.pattern or (None, None)
    counts = None if pupil.pattern else targets
    return attach(module, keep=keep, of=of, targets=counts, only=targets.__contains__, **temperature)


def train_soft(
    pupil: Pupil, how: Fit, size: int, span: tuple[float, float], *, tau: float | None, relative: float
) -> None:
    """Train all weights by the model's loss under PDP's soft masks of that temperature.

    They are dense before the first share of ``span``, their targets rise linearly until the second, and from
    there the masks are hard. Notes the discretisation gap at that moment. Raises OptionError for a model with
    pruned tensors that are no layers.
    """
    _check_span(span)
    targets = _start(pupil)
    own = dict(pupil.model.named_parameters())
    pdp = attached(pupil, pupil.model, targets, tau=tau, relative=relative)
    first, last = (round(share * how.steps) for share in span)

    def before_step(step: int) -> None:
        if step >= last and not _hard(pdp):
            pupil.notes["gaps"] = pdp.gap()
            pdp.harden()
        elif step >= first and step < last:
            pdp.progress((step - first + 1) / max(1, last - first))

    pupil.model.train()
    pupil.model.requires_grad_(True)
    losses = fit(list(own.values()), pupil.loss(size), how, label="retraining", before_step=before_step)
    if not _hard(pdp):
        pupil.notes["gaps"] = pdp.gap()
    pupil.masks |= pdp.harden()
    pdp.bake()
    pupil.changed |= set(own)
    pupil.notes |= {"trained": sum(p.numel() for p in own.values()), "losses": losses}


def train_pst(
    pupil: Pupil, rank: int, score_rank: int, how: Fit, size: int, span: tuple[float, float]
) -> None:
    """Train PST's factors on every pruned matrix, the counts on the cubic schedule over ``span``. Raises
    OptionError for N of M.
    """
    _check_span(span)
    if pupil.pattern is not None:
        raise OptionError("PST ranks whole matrices and cannot keep N of M: use perp or reconstruct")
    targets = _start(pupil)
    pupil.model.requires_grad_(False)
    generator = torch.Generator().manual_seed(pupil.seed)
    layers = {name: layer for name, layer in pupil.layers.items() if name in targets}
    parts = {name: Pst(layer.weight.detach(), generator, rank, score_rank) for name, layer in layers.items()}
    for name, layer in layers.items():
        parametrize.register_parametrization(layer.module, layer.attribute, parts[name])
    first, last = (share * how.steps for share in span)

    def before_step(step: int) -> None:
        share = cubic((step - first) / max(1.0, last - first), 1.0)
        for name, part in parts.items():
            part.drop = round(share * targets[name])

    trained = [parameter for part in parts.values() for parameter in part.parameters()]
    pupil.model.train()
    losses = fit(
        trained, pupil.loss(size), how, keeper=pupil.keeper, label="retraining", before_step=before_step
    )
    for name, layer in layers.items():
        part = parts[name]
        part.drop = targets[name]
        pupil.masks[name] = part.mask(layer.original)
        layer.settle(part.merged(layer.original))
    pupil.changed |= set(layers)
    pupil.notes |= {"trained": sum(p.numel() for p in trained), "losses": losses}


def _start(pupil: Pupil) -> dict[str, int]:
    """Put the dense weights back; by name, how many entries are to go."""
    pupil.loss(1)  # refuses what has no loss
    targets = {name: int((~mask).sum()) for name, mask in pupil.masks.items()}
    if not targets:
        raise OptionError("nothing is pruned, so there are no masks to learn")
    if other := sorted(targets.keys() - pupil.layers.keys()):
        raise OptionError(f"{other[0]} is no linear layer or convolution: its mask cannot be learned here")
    pupil.undo(targets)
    return targets


def _check_span(span: tuple[float, float]) -> None:
    if not 0 <= span[0] <= span[1] <= 1:
        raise OptionError(
            f"pruning from {span[0]:g} to {span[1]:g} of the steps: expected 0 <= from <= to <= 1"
        )


def _hard(pdp: Pdp) -> bool:
    return any(mask.hard is not None for mask in pdp.masks.values())
