"""Which entries stay: counts of magnitudes, cuts at a magnitude, the best of rows and of groups.

Magnitudes of 16-bit floats order as the lower 15 of their bits do, so that 32,768 counts tell every order
statistic exactly. *Scores* are fp32 ``(rows, width)``; of equal ones, those that come first go first.
``reference.py`` is the specification in plain numpy, ``cpu.py`` numba loops, ``bits.py`` bare machine code
for 16-bit floats, ``gpu.py`` torch: all agree to the bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from paring.kernels import module, module_for

F32 = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]
U16 = npt.NDArray[np.uint16]
Counts = npt.NDArray[np.int64]
Bits = npt.NDArray[Any]

#: magnitudes that a 16-bit float can have, and the first that is no number
BINS = 32_768
INFINITE = {"BF16": 0x7F80, "F16": 0x7C00}


@dataclass(frozen=True, slots=True)
class Sums:
    """What a cut did to some entries: how many stay, were zero, and are zero now; the squares that it drops,
    and all squares before, added up in fp64."""

    kept: int = 0
    before: int = 0
    zeros: int = 0
    lost: float = 0.0
    total: float = 0.0

    def __add__(self, other: Sums) -> Sums:
        return Sums(
            self.kept + other.kept, self.before + other.before, self.zeros + other.zeros,
            self.lost + other.lost, self.total + other.total,
        )  # fmt: skip


def _for(scores: Any) -> ModuleType:
    return module_for("pruning", scores)


def counts(bits: U16, device: str = "cpu") -> Counts:
    """How often each of the 32,768 magnitudes is among 16-bit floats ``bits (n,)``: ``(32768,)``."""
    if device == "cpu":
        from paring.kernels.pruning import bits as code

        return code.counts(bits)
    found: Counts = module("pruning", "gpu").counts(bits, device)
    return found


def cut(bits: U16, dtype: str, first: int, out: U16, device: str = "cpu") -> Sums:
    """Fill ``out (n,)`` with ``bits (n,)`` of BF16 or F16, zero where the magnitude's bits are below
    ``first``."""
    if device == "cpu":
        from paring.kernels.pruning import bits as code

        return code.cut(bits, dtype, first, out)
    found: Sums = module("pruning", "gpu").cut(bits, dtype, first, out, device)
    return found


def best(scores: Any, keep: int) -> Any:
    """The mask ``(rows, width)`` of the ``keep`` largest of each row; a torch tensor's is one, too."""
    return _for(scores).best(scores, keep)


def grouped(scores: Any, keep: int, of: int) -> Any:
    """The mask ``(rows, width)`` of the ``keep`` largest of every ``of`` neighbours in a row; ``of`` divides
    the width."""
    return _for(scores).grouped(scores, keep, of)


def masked(bits: Bits, values: F32, keep: Mask, out: Bits) -> Sums:
    """Fill ``out (n,)`` with stored ``bits (n,)``, whose ``values (n,)`` these are, zero where ``keep (n,)``
    is not true."""
    from paring.kernels.pruning import cpu

    return cpu.masked(bits, values, keep, out)
