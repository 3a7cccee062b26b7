"""PERP on a model in memory: cycles of pruning, reconstruction, retraining of a subset, merging."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from paring.errors import OptionError
from paring.pruning.matrix import Budget, select
from paring.pruning.schedules import cubic
from paring.retraining.blocks import Reconstruction, reconstruct
from paring.retraining.fitting import Fit
from paring.retraining.kinds import Kind
from paring.retraining.pupil import Pupil
from paring.retraining.subsets import choose

_log = logging.getLogger("paring")


@dataclass(frozen=True, slots=True)
class Perp:
    """How: see the options of :func:`paring.prune.perp.perp`. ``fit.steps`` are shared out among cycles."""

    fit: Fit
    size: int
    train: tuple[str, ...]
    adapter: Kind
    rank: int
    alpha: float
    checkpointing: bool = False
    cycles: int = 1
    reconstruction: Fit | None = None
    samples: int = 128
    relax: bool = False


def retrain(pupil: Pupil, how: Perp) -> None:
    """Carry it out in place. Raises OptionError, before any training, for what the model does not allow."""
    if not 1 <= how.cycles <= how.fit.steps:
        raise OptionError(f"--cycles {how.cycles}: expected from 1 to as many as there are steps")
    if how.cycles > 1 and how.adapter == "lora":
        raise OptionError("--cycles with --adapter lora: what is never merged cannot be pruned again")
    if how.relax and how.reconstruction is None:
        raise OptionError("--relax learns masks in reconstruction: add --reconstruct N")
    pupil.loss(how.size)  # refuses what has no loss
    final = dict(pupil.masks)
    if how.cycles > 1:
        pupil.undo(final)
    for cycle in range(1, how.cycles + 1):
        label = f"cycle {cycle} of {how.cycles}" if how.cycles > 1 else "retraining"
        if how.cycles > 1:
            if pupil.restore(label):
                continue
            prune(pupil, final, cubic(cycle / how.cycles, 1.0))
        if how.reconstruction is not None:
            pupil.notes["block_errors"] = reconstruct(
                pupil,
                Reconstruction(how.reconstruction, how.samples, how.size, relax=how.relax),
                f"{label}, " if how.cycles > 1 else "",
            )
        _train(pupil, how, label)
        if how.cycles > 1:
            pupil.finish(label, [name for name, _ in pupil.model.named_parameters()])


def _train(pupil: Pupil, how: Perp, label: str) -> None:
    subset = choose(
        pupil.model, how.train, pupil.layers, pupil.masks, adapter=how.adapter, rank=how.rank,
        alpha=how.alpha, seed=pupil.seed,
    )  # fmt: skip
    if how.checkpointing:
        _checkpoint(pupil.model)
    pupil.notes["trained"] = subset.count
    _log.info("%s: training %d of %d parameters", label, subset.count, pupil.parameters)
    losses = pupil.fit(subset.named, how.size, how.fit.part(how.cycles), label)
    pupil.notes.setdefault("losses", []).extend(losses)
    pupil.changed |= subset.changed()
    pupil.beside = subset.merge()


def _checkpoint(model: Any) -> None:
    """Compute activations twice rather than keep them; transformers has renamed the switch."""
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})


@torch.no_grad()
def prune(pupil: Pupil, final: dict[str, torch.Tensor], share: float) -> None:
    """Prune by magnitude to ``share`` of the zeros that ``final`` (masks in the parameters' shapes, true
    where kept) has in each tensor, or in each group.

    What is zero stays so: zeros are the smallest. At share 1 the counts are exactly those of ``final``.
    """
    layers = pupil.layers
    for name, mask in final.items():
        weight = pupil.model.get_parameter(name)
        layer = layers.get(name)
        turned = layer is not None and layer.turned
        matrix = (weight.T if turned else weight.reshape(weight.shape[0], -1)).abs().cpu().numpy()
        if pupil.pattern is not None:
            keep, of = pupil.pattern
            budget = Budget(of - round(share * (of - keep)), of=of)
        else:
            budget = Budget(mask.numel() - round(share * int((~mask).sum())))
        kept = torch.from_numpy(np.ascontiguousarray(select(matrix, budget)))
        new = (kept.T if turned else kept.reshape(weight.shape)).contiguous().to(weight.device)
        pupil.masks[name] = new
        weight.masked_fill_(~new, 0)
