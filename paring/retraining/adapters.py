"""Low-rank updates of a pruned matrix as torch parametrisations (PERP, arXiv:2312.15230; PST, IJCAI 2022).

With W pruned to the mask M, A ``(rank, in)``, B ``(out, rank)`` and ``s = alpha / rank``:

    ============  =======================  ======================================================
    kind          while training           merged
    ============  =======================  ======================================================
    lora          W + s BA                 not: the adapter stays beside the sparse weights
    loraprune     W + s BA                 W + s (M * BA): what left the mask is lost in one jump
    masklora      W + s (M * BA)           the same
    scalelora     W * BA                   the same
    ============  =======================  ======================================================

Everything is fp32. ScaleLoRA begins at BA = 1 exactly, with one rank of ones; the published A = B = 1 /
sqrt(rank) gives all ranks the same gradient for ever, so that BA never leaves rank 1.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from paring.pruning.growing import smallest
from paring.retraining.kinds import Kind


class Adapter(nn.Module):
    """One update of a weight ``(out, in)``, ``(in, out)`` with ``turned``; ``mask`` has the same shape."""

    mask: torch.Tensor | None

    def __init__(
        self,
        kind: Kind,
        weight: torch.Tensor,
        mask: torch.Tensor | None,
        rank: int,
        alpha: float,
        generator: torch.Generator,
        turned: bool = False,
    ) -> None:
        super().__init__()
        rows, columns = weight.shape[::-1] if turned else weight.shape
        self.kind, self.turned, self.scale = kind, turned, alpha / rank
        self.register_buffer("mask", mask, persistent=False)
        # LoRA's own beginning: uniform within 1 / sqrt(in), and zero
        a = (2 * torch.rand(rank, columns, generator=generator) - 1) / math.sqrt(columns)
        b = torch.zeros(rows, rank)
        if kind == "scalelora":
            a[0], b[:, 0] = 1, 1
        self.a, self.b = (nn.Parameter(factor.to(weight.device)) for factor in (a, b))

    def product(self) -> torch.Tensor:
        """BA, laid out as the weight is."""
        return self.a.T @ self.b.T if self.turned else self.b @ self.a

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        product = self.product()
        if self.kind == "scalelora":
            return weight * product
        if self.kind == "masklora" and self.mask is not None:
            product = product * self.mask
        return torch.add(weight, product, alpha=self.scale)

    def merged(self, weight: torch.Tensor) -> torch.Tensor:
        """The new weight, of its shape, exactly zero outside the mask; for ``lora`` the old one."""
        if self.kind == "lora":
            return weight.clone()
        found: torch.Tensor = self(weight)
        return found if self.mask is None else found.masked_fill(~self.mask, 0)


class Pst(nn.Module):
    """Parameter-efficient sparsity of a weight ``(out, in)``: a low-rank update and a mask by learned
    low-rank importance.

    ``W' = W + UV``, ``S = |W'| + AB + R 1^T + 1 C^T``; all but the ``drop`` lowest S are kept, and S gets the
    gradient of the mask straight through. With no step taken it prunes by magnitude.
    """

    def __init__(
        self,
        weight: torch.Tensor,
        generator: torch.Generator,
        rank: int = 8,
        score_rank: int = 8,
    ) -> None:
        super().__init__()
        rows, columns = weight.shape
        self.drop = 0

        def drawn(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(shape, generator=generator).to(weight.device))

        def zeros(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.zeros(shape, device=weight.device))

        self.u, self.v = drawn(rows, rank), zeros(rank, columns)
        self.a, self.b = drawn(rows, score_rank), zeros(score_rank, columns)
        self.r, self.c = zeros(rows, 1), zeros(1, columns)

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        updated, scores = self._parts(weight)
        if not self.drop:
            return updated
        return updated * (self.mask(weight) + scores - scores.detach())

    @torch.no_grad()
    def mask(self, weight: torch.Tensor) -> torch.Tensor:
        """``(out, in)``, true where kept: all but the ``drop`` lowest scores, ties by position."""
        dropped = smallest(self._parts(weight)[1].flatten(), self.drop)
        return ~dropped.reshape(weight.shape)

    @torch.no_grad()
    def merged(self, weight: torch.Tensor) -> torch.Tensor:
        """``M * W'``, ``(out, in)``: exactly ``drop`` zeros; the scores have done their work."""
        updated, _ = self._parts(weight)
        return updated.masked_fill(~self.mask(weight), 0)

    def _parts(self, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        updated = weight + self.u @ self.v
        scores = updated.abs() + self.a @ self.b + (self.r + self.c)
        return updated, scores
