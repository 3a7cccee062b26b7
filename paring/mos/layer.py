"""The torch modules of MoS: pools that layers share, a linear layer with an update made of their shards."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from paring.mos.routing import Sizes


class SharedPools(nn.Module):
    """The pools of one projection type: ``a (shards, in / l)`` and ``b (shards, out / l)``, fp32."""

    def __init__(self, a: torch.Tensor, b: torch.Tensor) -> None:
        super().__init__()
        self.a = nn.Parameter(a)
        self.b = nn.Parameter(b)


class MosLinear(nn.Module):
    """``base(x) + scale * B A dropout(x)``, A ``(r, in)`` and B ``(out, r)`` gathered from shared pools."""

    def __init__(
        self, base: nn.Linear, pools: SharedPools, indices: tuple[torch.Tensor, torch.Tensor],
        sizes: Sizes, scale: float, dropout: float,
    ) -> None:  # fmt: skip
        super().__init__()
        self.base_layer = base
        self.pools = pools
        self.r, self.scale = sizes.r, scale
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.index_a: torch.Tensor  # (r * l,)
        self.index_b: torch.Tensor
        self.register_buffer("index_a", indices[0], persistent=False)
        self.register_buffer("index_b", indices[1], persistent=False)

    # models ask their projections for these
    @property
    def weight(self) -> torch.Tensor:
        return self.base_layer.weight

    @property
    def bias(self) -> torch.Tensor | None:
        return self.base_layer.bias

    @property
    def in_features(self) -> int:
        return self.base_layer.in_features

    @property
    def out_features(self) -> int:
        return self.base_layer.out_features

    def factors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """A ``(r, in)`` and B ``(out, r)``; gradients flow to the pools."""
        # F.embedding gathers rows as indexing does, with a far cheaper backward pass
        a = functional.embedding(self.index_a, self.pools.a).reshape(self.r, -1)
        return a, functional.embedding(self.index_b, self.pools.b).reshape(self.r, -1).T

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.base_layer(x)
        a, b = self.factors()
        low = functional.linear(self.dropout(x).to(a.dtype), a)
        return out + (functional.linear(low, b) * self.scale).to(out.dtype)

    @torch.no_grad()
    def merge(self) -> nn.Linear:
        """The base layer with the update added in fp32 and rounded once."""
        weight = self.base_layer.weight
        a, b = self.factors()
        weight.copy_((weight.float() + self.scale * (b.float() @ a.float())).to(weight.dtype))
        return self.base_layer
