"""torch: the same counts of a tensor on any device."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from paring.kernels.order import F32, HIGH, LOW, Bracket, Counts, Keys


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


def _keys(values: torch.Tensor, signed: bool) -> torch.Tensor:
    """int64 keys on the device of ``values (n,)``, fp32."""
    bits = values.view(torch.int32).long() & 0xFFFFFFFF
    if not signed:
        return bits & 0x7FFFFFFF
    return torch.where(bits >> 31 == 1, bits ^ 0xFFFFFFFF, bits | 0x80000000)


def _between(values: torch.Tensor, signed: bool, low: int, high: int) -> tuple[int, Keys]:
    keys = _keys(values, signed)
    found = keys[(keys >= low) & (keys <= high)].cpu().numpy().astype(np.uint32)
    return int((keys < low).sum()), found


def brackets(values: torch.Tensor, signed: bool, wanted: Sequence[Bracket]) -> list[tuple[int, Keys]]:
    return [_between(values[row], signed, low, high) for row, low, high in wanted]


def count(values: torch.Tensor, signed: bool, low: int, shift: int) -> tuple[int, Counts]:
    keys = _keys(values, signed) - low
    bins = keys[keys >= 0] >> shift
    counts: Counts = torch.bincount(bins[bins < HIGH], minlength=HIGH).cpu().numpy()
    return int((keys < 0).sum()), counts
