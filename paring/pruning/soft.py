"""The soft masks of PDP as a torch parametrisation of a weight: ``m(w) * w`` is what the model computes with.

``m = sigmoid((w^2 - t^2) / tau)``, with ``t`` half way between the largest dropped and the smallest kept
magnitude, found anew in every forward pass and detached: gradients reach a weight only through its own mask.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from paring.pruning.matrix import Budget, select

#: keeps the quotient finite where a group's threshold is zero
_TINY = 1e-30


class SoftMask(nn.Module):
    """Weights ``(out, in)`` (``turned``: ``(in, out)``; convolutions are flattened after ``out``), masked.

    ``drop`` entries have m below one half: of the whole matrix, of the rows by L2 norm (``channels``), or,
    with ``of``, in each group of that many along the inputs. 0 leaves the weights as they are. ``tau`` is
    absolute (as published), otherwise ``relative`` times the square of t. Once ``hard`` is set, that mask is
    used.
    """

    hard: torch.Tensor | None

    def __init__(
        self,
        *,
        of: int | None = None,
        channels: bool = False,
        tau: float | None = None,
        relative: float = 0.05,
        turned: bool = False,
    ) -> None:
        super().__init__()
        self.of, self.channels, self.turned = of, channels, turned
        self.tau, self.relative = tau, relative
        self.drop: int = 0
        self.register_buffer("hard", None)

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        if self.hard is not None:
            return weight * self.hard
        if not self.drop:
            return weight
        return weight * self.mask(weight)

    def mask(self, weight: torch.Tensor) -> torch.Tensor:
        """m, of the shape of ``weight``; differentiable."""
        squares = self._squares(weight)
        if self.drop >= squares.shape[-1]:
            return torch.zeros_like(weight)
        t2 = threshold(squares.detach().sqrt(), self.drop).square()
        tau = self.tau if self.tau is not None else (self.relative * t2).clamp_min(_TINY)
        return self._back(torch.sigmoid((squares - t2) / tau), weight)

    def exact(self, weight: torch.Tensor) -> torch.Tensor:
        """The hard mask, bool, of the shape of ``weight``: exactly ``drop`` dropped, ties by position; what m
        rounds to without ties."""
        squares = self._squares(weight.detach())
        rows = squares.reshape(-1, squares.shape[-1]).cpu().numpy()
        kept = np.ascontiguousarray(select(rows, Budget(rows.shape[1] - self.drop, row=True)))
        return self._back(torch.from_numpy(kept).to(weight.device).reshape(squares.shape), weight)

    def magnitudes(self, weight: torch.Tensor) -> torch.Tensor:
        """What a ranking over the whole model ranks: magnitudes of entries ``(entries,)``, or with
        ``channels`` the norms of rows ``(out,)``.
        """
        return self._squares(weight.detach()).sqrt().flatten()

    def _squares(self, weight: torch.Tensor) -> torch.Tensor:
        """What is ranked, squared: ``(entries,)``, ``(out,)``, or ``(out, groups, of)``."""
        matrix = (weight.T if self.turned else weight.flatten(1)).float()
        if self.channels:
            return matrix.square().sum(1)
        if self.of is not None:
            return matrix.square().reshape(len(matrix), -1, self.of)
        return matrix.square().flatten()

    def _back(self, found: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """From the shape of :meth:`_squares` to that of the weight."""
        out = weight.shape[1] if self.turned else weight.shape[0]
        rows = found[:, None].expand(out, weight.numel() // out) if self.channels else found.reshape(out, -1)
        whole = rows.T if self.turned else rows.reshape(weight.shape)
        return whole if found.dtype == torch.bool else whole.to(weight.dtype)


def threshold(magnitudes: torch.Tensor, drop: int) -> torch.Tensor:
    """Half way between the ``drop``-th smallest along the last axis and the next: ``(..., 1)``."""
    largest_dropped = magnitudes.kthvalue(drop, keepdim=True).values
    smallest_kept = magnitudes.kthvalue(drop + 1, keepdim=True).values
    return (largest_dropped + smallest_kept) / 2
