"""PDP's soft masks on a whole model: targets from one ranking, a schedule, hardening to exact counts.

:mod:`paring.prune.pdp` says what PDP is and when to use it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fractions import Fraction

import torch
from torch import nn
from torch.nn.utils import parametrize

from paring.errors import OptionError
from paring.pruning.growing import smallest
from paring.pruning.layers import Layer, layers
from paring.pruning.schedules import count, ramp
from paring.pruning.soft import SoftMask

#: the constant of the paper's Appendix D, for networks whose weights are of the size of a CNN's
PUBLISHED_TAU = 1e-4
#: the automatic warm-up ends after so many epochs above this share of the best accuracy there can be
_EPOCHS, _SHARE = 5, 0.5


class Pdp:
    """Soft masks on a model: ``layers`` and ``masks`` map the names of weights."""

    def __init__(
        self,
        layers: Mapping[str, Layer],
        masks: Mapping[str, SoftMask],
        sparsity: float | str,
        warmup: int | None = 16,
        rate: float = 0.015,
        targets: Mapping[str, int] | None = None,
        bound: float = 1.0,
    ) -> None:
        self.layers, self.masks = dict(layers), dict(masks)
        self.sparsity, self.warmup, self.rate, self.bound = sparsity, warmup, rate, bound
        self.targets = None if targets is None else dict(targets)
        self.above = 0

    def epoch(self, epoch: int, accuracy: float | None = None) -> None:
        """Call before each epoch, counted from 0: dense before ``warmup``, nearer the targets from it on.

        Where the warm-up is automatic, ``accuracy`` is that on held-out data after the epoch before, in
        [0, ``bound``]; the warm-up ends once it has been above half of that for 5 epochs on end. Raises
        OptionError where none is given, but for epoch 0.
        """
        if self.warmup is None and epoch > 0:
            if accuracy is None:
                raise OptionError("PDP with an automatic warm-up: epoch() needs the held-out accuracy so far")
            self.above = self.above + 1 if accuracy > _SHARE * self.bound else 0
            self.warmup = epoch if self.above == _EPOCHS else None
        self.progress(0.0 if self.warmup is None else ramp(epoch, self.warmup, self.rate))

    def progress(self, share: float) -> None:
        """Ask each layer for ``share`` (in [0, 1]) of its target. The first share above 0 fixes the targets.

        N:M has nothing between: it is asked for as soon as the share is above 0.
        """
        if share > 0 and self.targets is None:
            self.targets = self._ranked()
        for name, mask in self.masks.items():
            target = (self.targets or {}).get(name, 0)
            mask.drop = target * (share > 0) if mask.of else count(Fraction(share), target)

    def gap(self) -> dict[str, float]:
        """By layer, ``||m w - hard w|| / ||hard w||``: how far the soft model is from what is kept of it."""
        found = {}
        with torch.no_grad():
            for name, mask in self.masks.items():
                weight = self.layers[name].original
                kept = weight * mask.exact(weight)
                found[name] = float((mask(weight) - kept).norm() / kept.norm()) if mask.drop else 0.0
        return found

    def harden(self) -> dict[str, torch.Tensor]:
        """Fix the masks at their full targets and return them: bool, in the weights' shapes, true
        where kept, exact counts.

        Weights stay trainable, and what is masked stays out of the model.
        """
        self.progress(1.0)
        for name, mask in self.masks.items():
            mask.hard = mask.exact(self.layers[name].original)
        return {name: mask.hard for name, mask in self.masks.items() if mask.hard is not None}

    def bake(self) -> None:
        """Put plain weights back, with exact zeros where the hard mask has them. Raises OptionError before
        :meth:`harden`.
        """
        for name, mask in self.masks.items():
            if mask.hard is None:
                raise OptionError(f"{name} still has a soft mask: harden() before bake()")
        for layer in self.layers.values():
            parametrize.remove_parametrizations(layer.module, layer.attribute)

    def _ranked(self) -> dict[str, int]:
        """By layer, how many of its entries, or channels, are among the smallest of all."""
        sizes = [mask.magnitudes(self.layers[name].original).cpu() for name, mask in self.masks.items()]
        flat = torch.cat(sizes)
        dropped = smallest(flat, count(self.sparsity, len(flat)))
        counts, start = {}, 0
        for name, size in zip(self.masks, sizes, strict=True):
            counts[name] = int(dropped[start : start + len(size)].sum())
            start += len(size)
        return counts


def attach(
    model: nn.Module,
    sparsity: float | str | None = None,
    *,
    keep: int | None = None,
    of: int | None = None,
    channels: bool = False,
    tau: float | None = None,
    relative: float = 0.05,
    warmup: int | None = 16,
    rate: float = 0.015,
    bound: float = 1.0,
    only: Callable[[str], bool] | None = None,
    targets: Mapping[str, int] | None = None,
) -> Pdp:
    """Put soft masks on a model's matrices, in place; heads, embeddings and shared weights have none.

    Args:
        sparsity: share of all their entries that is pruned, in [0, 1); with ``channels``, of their outputs
        keep, of: instead, keep so many of each group along the inputs (2 of 4)
        channels: whole outputs, by the L2 norm of their weights
        tau: the temperature; None for ``relative`` times t^2, ``PUBLISHED_TAU`` for the paper's constant
        warmup, rate: dense epochs, and the share of the target that each later epoch adds; with None for
            ``warmup`` the accuracies that :meth:`Pdp.epoch` is given tell
        bound: the best that these can be
        only: says of the name of a weight whether it is pruned
        targets: by name, how many are dropped, in place of the ranking after the warm-up

    Raises OptionError, leaving the model as it was.
    """
    pattern = keep is not None or of is not None
    if sum((sparsity is not None, pattern, targets is not None)) != 1:
        raise OptionError("PDP needs one of sparsity, keep and of, targets: how much is to go")
    if pattern and (keep is None or of is None or not 0 < keep <= of or channels):
        raise OptionError(f"PDP keeping {keep} of {of}: expected 0 < keep <= of, of entries")
    if sparsity is not None and not 0 <= Fraction(str(sparsity)) < 1:
        raise OptionError(f"PDP of sparsity {sparsity}: expected a fraction in [0, 1)")
    if not bound > 0:
        raise OptionError(f"PDP with accuracies up to {bound}: expected a bound above 0")
    if (tau is not None and not tau > 0) or not relative > 0:
        raise OptionError(f"PDP with tau {tau}, relative {relative}: a temperature is above 0")
    chosen = {name: layer for name, layer in layers(model).items() if only is None or only(name)}
    if not chosen or (missing := set(targets or ()) - chosen.keys()):
        what = f"no matrix {sorted(missing)[0]!r}" if chosen else "no matrices to prune"
        raise OptionError(f"PDP: the model has {what}")
    for name, layer in chosen.items():
        width = layer.weight.numel() // layer.weight.shape[1 if layer.turned else 0]
        if of is not None and width % of:
            raise OptionError(f"PDP of {name}: its {width} inputs do not divide into groups of {of}")
    masks = {
        name: SoftMask(of=of, channels=channels, tau=tau, relative=relative, turned=layer.turned)
        for name, layer in chosen.items()
    }
    for name, layer in chosen.items():
        parametrize.register_parametrization(layer.module, layer.attribute, masks[name])
    if keep is not None and of is not None:
        targets = dict.fromkeys(chosen, of - keep)
    return Pdp(chosen, masks, sparsity or 0, warmup, rate, targets, bound)
