"""torch: bits to fp32 and back on any device; bits travel as they are stored."""

from __future__ import annotations

import numpy as np
import torch

from paring.dtypes import STORAGE
from paring.errors import UnsupportedError
from paring.kernels.elementwise import Bits

_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def send(bits: Bits, dtype: str, device: str) -> torch.Tensor:
    """Stored ``bits (n,)`` as values of their dtype ``(n,)`` on ``device``. Raises UnsupportedError for other
    dtypes.
    """
    if dtype not in _DTYPES:
        raise UnsupportedError(f"tensors of dtype {dtype} hold no floating-point values to work on")
    plain = np.ascontiguousarray(bits)
    if not plain.flags.writeable:
        plain = plain.copy()
    if dtype == "BF16":
        return torch.from_numpy(plain.view(np.int16)).to(device).view(torch.bfloat16)
    return torch.from_numpy(plain).to(device)


def widen(bits: Bits, dtype: str, device: str) -> tuple[torch.Tensor, bool]:
    """Stored ``bits (n,)`` as fp32 on ``device``, fp64 rounded to nearest; whether all are finite."""
    out = send(bits, dtype, device).float()
    return out, bool(torch.isfinite(out).all())


def narrow(values: torch.Tensor, dtype: str, out: Bits) -> bool:
    """Fill ``out (n,)`` with ``values (n,)`` rounded once, to nearest even; whether all are finite."""
    rounded = values.to(_DTYPES[dtype])
    finite = bool(torch.isfinite(rounded).all())
    plain = rounded.view(torch.int16) if dtype == "BF16" else rounded
    out[:] = plain.cpu().numpy().view(STORAGE[dtype])
    return finite


def unmoved(update: torch.Tensor, before: Bits, after: Bits) -> int:
    """As :func:`paring.kernels.elementwise.unmoved`; the bits are compared where they are."""
    same = torch.from_numpy(np.equal(before, after)).to(update.device)
    return int(((update != 0) & same).sum())
