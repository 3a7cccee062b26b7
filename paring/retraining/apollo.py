"""APOLLO and APOLLO-Mini (Zhu et al., arXiv:2412.05270): Adam's step sizes from a random projection.

For a gradient G ``(m, n)`` with m < n (otherwise everything is transposed): R = P^T G ``(rank, n)`` with P
drawn from N(0, 1 / rank) anew every ``refresh`` steps; Adam's moments are kept of R alone; column j of G is
scaled by ``||M_j / (sqrt(V_j) + eps)|| / ||R_j||``, or with Mini, of rank 1, all of G by one such number. The
norm of what comes out may grow by 1 % a step. State: 2 rank n numbers in place of 2 m n. Tensors of one axis
get plain AdamW.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from paring.errors import OptionError
from paring.kernels import random

#: the published factors on the update; their square roots are applied
SCALES = {False: 1.0, True: 128.0}
_GROWTH = 1.01


class Apollo(torch.optim.Optimizer):
    """``rank`` of the projection (1 with ``mini``); decoupled weight decay; draws keyed by ``seed``."""

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        lr: float = 1e-3,
        *,
        rank: int = 256,
        mini: bool = False,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        refresh: int = 200,
        seed: int = 0,
    ) -> None:
        if rank < 1 or refresh < 1:
            raise OptionError(f"APOLLO of rank {rank}, refreshed every {refresh} steps: both are at least 1")
        self.mini, self.rank, self.seed, self.refresh = mini, 1 if mini else rank, seed, refresh
        super().__init__(parameters, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of all parameters that have a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for index, parameter in enumerate(group["params"]):
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group, index)
        return loss

    def _update(
        self, parameter: torch.Tensor, gradient: torch.Tensor, group: dict[str, Any], index: int
    ) -> None:
        state = self.state[parameter]
        step = state["step"] = state.get("step", 0) + 1
        first, second = group["betas"]
        matrix = gradient.flatten(1) if gradient.dim() > 1 else None
        wide = matrix if matrix is None or matrix.shape[0] < matrix.shape[1] else matrix.T
        seen = gradient if wide is None else self._projection(wide, index, step).T @ wide
        if "exp_avg" not in state:
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(seen), torch.zeros_like(seen)
        state["exp_avg"].lerp_(seen, 1 - first)
        state["exp_avg_sq"].mul_(second).addcmul_(seen, seen, value=1 - second)
        normed = state["exp_avg"] / (state["exp_avg_sq"].sqrt() + group["eps"])
        if wide is None:
            update, factor = normed, 1.0
        else:
            over = None if self.mini else 0
            ratio = torch.linalg.vector_norm(normed, dim=over) / (
                torch.linalg.vector_norm(seen, dim=over) + 1e-8
            )
            scaled = wide * ratio
            scaled = scaled * self._limit(state, scaled)
            update = (scaled if wide is matrix else scaled.T).reshape(parameter.shape)
            factor = math.sqrt(SCALES[self.mini])
        rate = group["lr"] * math.sqrt(1 - second**step) / (1 - first**step)
        parameter.mul_(1 - group["lr"] * group["weight_decay"]).sub_(update, alpha=rate * factor)

    def _projection(self, wide: torch.Tensor, index: int, step: int) -> torch.Tensor:
        """P ``(m, rank)`` of this parameter and period: drawn anew, never stored."""
        key = random.key(self.seed, "apollo", str(index), str((step - 1) // self.refresh))
        generator = torch.Generator().manual_seed(int(key) % 2**63)
        drawn = torch.randn(wide.shape[0], self.rank, generator=generator)
        return (drawn / math.sqrt(self.rank)).to(wide)

    @staticmethod
    def _limit(state: dict[str, Any], scaled: torch.Tensor) -> float:
        """What keeps the update's norm within 1.01 times that of the step before."""
        norm = float(torch.linalg.vector_norm(scaled))
        before = state.get("norm")
        factor = _GROWTH * before / norm if before and norm > _GROWTH * before else 1.0
        state["norm"] = norm * factor
        return factor
