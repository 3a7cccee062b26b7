"""Ternary planes with torch, on any device. Entropy coding is sequential: it stays on the CPU."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from paring.dtypes import from_f32

_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def _bytes(bits: Tensor) -> Tensor:
    """Pack (n,) bool into (ceil(n / 8),) uint8, little bit order."""
    padded = torch.nn.functional.pad(bits, (0, -len(bits) % 8)).view(-1, 8)
    weights = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8, device=bits.device)
    return (padded * weights).sum(1, dtype=torch.uint8)


def _bits(plane: Tensor, n: int) -> Tensor:
    shifts = torch.arange(8, dtype=torch.uint8, device=plane.device)
    return (plane[:, None] >> shifts & 1).view(-1)[:n].to(torch.int8)


def threshold(x: Tensor, t: float) -> tuple[Tensor, Tensor]:
    """Planes of ``x`` (n,), fp32: entries with ``|x| >= t`` (compared in fp32) are kept. NaN is not."""
    keep = x.abs() >= torch.tensor(t, dtype=torch.float32, device=x.device)
    return _bytes(keep), _bytes(keep & (x < 0))


def pack(trits: Tensor) -> tuple[Tensor, Tensor]:
    """Planes (ceil(n / 8),) of ``trits`` (n,), int8 in -1, 0, +1."""
    return _bytes(trits != 0), _bytes(trits < 0)


def unpack(mask: Tensor, sign: Tensor, n: int) -> Tensor:
    """The first ``n`` trits (n,), int8, of two planes."""
    return _bits(mask, n) - 2 * _bits(sign, n)


def dequantise(mask: Tensor, sign: Tensor, n: int, scale: float, dtype: str) -> Tensor:
    """``scale * trit`` (n,) in ``dtype``, rounded once to nearest even; zeros are +0.

    Raises BadValueError where the fp32 ``scale`` overflows ``dtype``.
    """
    from_f32(np.array(scale, np.float32), dtype)  # refuses an overflow
    values = torch.tensor([0, scale, -scale], dtype=torch.float32, device=mask.device).to(_DTYPES[dtype])
    return values[unpack(mask, sign, n).long() % 3]
