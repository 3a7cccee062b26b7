"""Element-wise work on stored bits: to fp32 and back, what rounding loses, checksums.

``bits`` are a stored tensor's elements, flat, in the storage of its dtype (:data:`paring.dtypes.STORAGE`);
values are fp32. ``reference.py`` is the specification, ``cpu.py`` numba loops at the speed of memory,
``gpu.py`` torch, for values that are torch tensors.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from paring.kernels import module, module_for

F32 = npt.NDArray[np.float32]
Bits = npt.NDArray[Any]


def _for(values: Any) -> ModuleType:
    return module_for("elementwise", values)


def widen(bits: Bits, dtype: str, out: F32, less: F32 | None = None) -> bool:
    """Fill ``out (n,)`` with the values of ``bits (n,)``, fp64 rounded to nearest, less those of ``less``;
    whether the values of ``bits`` are finite."""
    finite: bool = module("elementwise", "cpu").widen(bits, dtype, out, less)
    return finite


def narrow(values: F32, dtype: str, out: Bits) -> bool:
    """Fill ``out (n,)`` with ``values (n,)`` rounded once, to nearest even; whether all are finite.

    What is in ``out`` where they are not is undefined. Raises UnsupportedError for a ``dtype`` that is not
    floating point.
    """
    found: bool = _for(values).narrow(values, dtype, out)
    return found


def unmoved(update: F32, before: Bits, after: Bits) -> int:
    """How many entries with an ``update (n,)`` that is not zero have the same bits before and after it."""
    found: int = _for(update).unmoved(update, before, after)
    return found


def checksum(data: npt.NDArray[np.uint8], start: int = 0) -> int:
    """A 64-bit sum over the bytes ``data (n,)`` that begin ``start`` bytes into what is summed.

    Sums of pieces add up, modulo 2^64, to the sum of the whole, wherever it was cut. It notices any change of
    a single word, swapped words and zeroed pages; it is no cryptographic hash.
    """
    from paring.kernels.elementwise import sums

    return sums.checksum(data, start)
