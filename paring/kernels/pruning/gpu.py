"""torch: the same on any device. Sums of squares agree to rounding, all else to the bit."""

from __future__ import annotations

import numpy as np
import torch

from paring.kernels.pruning import BINS, F32, U16, Counts, Sums


def send(scores: F32, device: str) -> torch.Tensor:
    """``scores (rows, width)`` on ``device``."""
    return torch.tensor(scores, device=device)


def _short(bits: U16, device: str) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(bits).view(np.int16).copy()).to(device)


def counts(bits: U16, device: str) -> Counts:
    keys = (_short(bits, device) & 0x7FFF).long()
    found: Counts = torch.bincount(keys, minlength=BINS).cpu().numpy()
    return found


def cut(bits: U16, dtype: str, first: int, out: U16, device: str) -> Sums:
    short = _short(bits, device)
    keep = (short & 0x7FFF) >= first
    made = torch.where(keep, short, torch.zeros_like(short))
    out[:] = made.cpu().numpy().view(np.uint16)
    kind = torch.bfloat16 if dtype == "BF16" else torch.float16
    squares = short.view(kind).double().square()
    zeros = ((short & 0x7FFF) == 0).sum(), ((made & 0x7FFF) == 0).sum()
    lost, total = squares[~keep].sum(), squares.sum()
    return Sums(int(keep.sum()), int(zeros[0]), int(zeros[1]), float(lost), float(total))


def best(scores: torch.Tensor, keep: int) -> torch.Tensor:
    last = torch.argsort(scores, dim=1, stable=True)[:, scores.shape[1] - keep :]
    mask = torch.zeros(scores.shape, dtype=torch.bool, device=scores.device)
    return mask.scatter_(1, last, True)


def grouped(scores: torch.Tensor, keep: int, of: int) -> torch.Tensor:
    return best(scores.reshape(-1, of), keep).reshape(scores.shape)
