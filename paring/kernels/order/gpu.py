"""torch: the same counts of a tensor on any device."""

from __future__ import annotations

import torch

from paring.kernels.order import F32, HIGH, LOW


def send(values: F32, device: str) -> torch.Tensor:
    """``values (n,)`` on ``device``."""
    return torch.tensor(values, device=device)


def high(values: torch.Tensor) -> torch.Tensor:
    """int64 counts ``(65536,)`` on the device of ``values (n,)``, fp32."""
    keys = (values.view(torch.int32) & 0x7FFFFFFF) >> 15
    return torch.bincount(keys, minlength=HIGH)


def low(values: torch.Tensor, bucket: int) -> torch.Tensor:
    """int64 counts ``(32768,)`` on the device of ``values (n,)``, fp32."""
    keys = values.view(torch.int32) & 0x7FFFFFFF
    return torch.bincount(keys[(keys >> 15) == bucket] & 0x7FFF, minlength=LOW)
