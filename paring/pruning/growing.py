"""Dynamic sparse training: drop the smallest weights of a mask, grow as many elsewhere.

:func:`drop_and_grow` is one update of one mask, its counts exact whatever the growing rule; :class:`Updater`
keeps the masks of a model in a training loop:

    updater = Updater(masks, optimizer, grow="gradient")
    ...
        loss.backward()
        if step % 400 == 0:
            updater.update(rate=death_rate(step, steps))
        optimizer.step()
        updater.apply()        # momentum moves masked weights too: they are put back to zero

Rules: ``random`` (SET, Mocanu et al. 2018), ``unfired`` (random among entries that were never active first;
ITOP, Liu et al. 2021), ``gradient`` (RigL, Evci et al. 2020) and ``momentum`` (Adam's m / sqrt(v)), as
compared by Yildirim et al. (Continual Learning with Dynamic Sparse Training, CPAL 2024).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, NamedTuple

import torch
from torch import nn

from paring.errors import BadValueError, OptionError
from paring.pruning.schedules import count

Grow = Literal["random", "unfired", "gradient", "momentum"]


class Update(NamedTuple):
    """The new mask, and the entries that it lost and won, all bool of the mask's shape."""

    mask: torch.Tensor
    dropped: torch.Tensor
    grown: torch.Tensor


def death_rate(step: int, steps: int, start: float = 0.5, end: float = 0.005) -> float:
    """Share of active weights to drop at ``step``: a cosine from ``start`` to ``end``."""
    return end + (start - end) * (1 + math.cos(math.pi * min(step, steps) / steps)) / 2


def drop_and_grow(
    weights: torch.Tensor,
    mask: torch.Tensor,
    rate: float,
    *,
    scores: torch.Tensor | None = None,
    fired: torch.Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Update:
    """Drop the ``floor(rate * active)`` smallest ``|weights|`` of ``mask``, then grow as many. All tensors,
    and those returned, have one shape, any; masks are true where active.

    Grown are the entries with the largest ``scores`` among all that are inactive after the drop, as RigL has
    it; without scores they are drawn with ``generator``. With ``fired`` (bool, ever active), entries that
    never were come first. Of equals, those that come first in flat order are dropped, and grown, first.

    Raises BadValueError for NaN among weights or scores, OptionError for a rate outside [0, 1].
    """
    if not 0 <= rate <= 1:
        raise OptionError(f"a rate of {rate}: expected the share of active weights to drop, in [0, 1]")
    size = weights.abs().flatten()
    active = mask.flatten().bool()
    wish = torch.rand(size.shape, generator=generator).to(size) if scores is None else scores.flatten()
    if bool(size.isnan().any()) or bool(wish.isnan().any()):
        raise BadValueError("a mask cannot be updated by weights or scores that hold NaN")
    number = count(rate, int(active.sum()))
    infinity = torch.full_like(size, math.inf)
    dropped = smallest(torch.where(active, size, infinity), number)
    kept = active & ~dropped
    rank = torch.where(kept, infinity, -wish)
    if fired is not None:  # those that never were active all come before the others
        never = ~fired.flatten() & ~kept
        number_new = min(number, int(never.sum()))
        grown = smallest(torch.where(never, rank, infinity), number_new)
        grown |= smallest(torch.where(grown, infinity, rank), number - number_new)
    else:
        grown = smallest(rank, number)
    shape = mask.shape
    return Update((kept | grown).reshape(shape), dropped.reshape(shape), grown.reshape(shape))


def smallest(keys: torch.Tensor, number: int) -> torch.Tensor:
    """The ``number`` smallest ``keys (n,)`` as a mask ``(n,)``, bool, ties by position."""
    chosen = torch.zeros_like(keys, dtype=torch.bool)
    chosen[keys.sort(stable=True).indices[:number]] = True
    return chosen


@torch.no_grad()
def hold(masks: Mapping[nn.Parameter, torch.Tensor], *, gradients: bool = False) -> None:
    """Zero what parameters, or with ``gradients`` their gradients, hold outside of ``masks``, bool in their
    shapes, true where kept."""
    for parameter, mask in masks.items():
        target = parameter.grad if gradients else parameter
        if target is not None:
            target.masked_fill_(~mask, 0)


class Updater:
    """The masks of a model's parameters while it trains, by one growing rule.

    ``masks`` map parameters to bool tensors, true where active. Only the gradients of active entries reach
    the optimizer if :meth:`apply` is called with ``gradients=True`` before its step; growing by gradient
    needs those of all entries, so update first.
    """

    def __init__(
        self,
        masks: Mapping[nn.Parameter, torch.Tensor],
        optimizer: torch.optim.Optimizer,
        grow: Grow = "gradient",
        seed: int = 0,
    ) -> None:
        self.masks = {parameter: mask.bool().clone() for parameter, mask in masks.items()}
        self.fired = {parameter: mask.clone() for parameter, mask in self.masks.items()}
        self.optimizer, self.grow = optimizer, grow
        self._generator = torch.Generator().manual_seed(seed)
        self.apply()

    @torch.no_grad()
    def update(self, rate: float) -> int:
        """Move every mask; grown weights and their moments begin at zero. Returns how many were moved."""
        moved = 0
        for parameter, mask in self.masks.items():
            scores = self._scores(parameter)
            fired = self.fired[parameter] if self.grow == "unfired" else None
            found = drop_and_grow(
                parameter, mask, rate, scores=scores, fired=fired, generator=self._generator
            )
            self.masks[parameter] = found.mask
            self.fired[parameter] |= found.mask
            fresh = found.grown & ~(found.dropped & found.mask)  # what is dropped and grown at once goes on
            for tensor in (parameter, *self._moments(parameter)):
                tensor.masked_fill_(fresh, 0)
            moved += int(found.grown.sum())
        self.apply()
        return moved

    def apply(self, *, gradients: bool = False) -> None:
        """Zero what is inactive: the weights, or with ``gradients`` what the optimizer will see of them."""
        hold(self.masks, gradients=gradients)

    def _scores(self, parameter: nn.Parameter) -> torch.Tensor | None:
        if self.grow in ("random", "unfired"):
            return None
        if self.grow == "gradient":
            if parameter.grad is None:
                raise OptionError("growing by gradient: call update() after backward(), before zero_grad()")
            return parameter.grad.abs()
        moments = self._moments(parameter)
        if len(moments) < 2:
            raise OptionError("growing by momentum needs an Adam-like optimizer that has taken a step")
        return (moments[0] / (moments[1].sqrt() + 1e-12)).abs()

    def _moments(self, parameter: nn.Parameter) -> list[torch.Tensor]:
        state = self.optimizer.state.get(parameter, {})
        return [state[name] for name in ("exp_avg", "exp_avg_sq") if name in state]
