"""The specification of :mod:`paring.kernels.elementwise` in plain numpy."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from paring.dtypes import Stored, from_f32
from paring.errors import BadValueError
from paring.kernels.elementwise import F32, Bits


def widen(bits: Bits, dtype: str, out: F32, less: F32 | None = None) -> bool:
    with np.errstate(invalid="ignore"):
        values = Stored(dtype, bits).f32()
        out[:] = values if less is None else values - less
    return bool(np.isfinite(values).all())


def narrow(values: F32, dtype: str, out: Bits) -> bool:
    try:
        out[:] = from_f32(values, dtype).data
    except BadValueError:
        return False
    return bool(np.isfinite(values).all())


def unmoved(update: F32, before: Bits, after: Bits) -> int:
    return int(np.count_nonzero((update != 0) & (before == after)))


def checksum(data: npt.NDArray[np.uint8], start: int = 0) -> int:
    # words times odd numbers: odd numbers have inverses, so no change of one word goes unnoticed
    places = range(start, start + len(data))
    pairs = zip(places, data.tolist(), strict=True)
    return int(sum((byte << 8 * (at % 8)) * (2 * (at // 8) + 1) for at, byte in pairs)) % 2**64
