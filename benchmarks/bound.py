"""The least bytes that any code needs for an adapter at an error, if its rank vectors are Gaussian.

A component ``s u v`` whose u ``(out,)`` and v ``(in,)`` are told with distortions D_u and D_v loses
``s^2 (1 - (1 - D_u)(1 - D_v))`` and takes at least ``out / 2 log2(1 / D_u) + in / 2 log2(1 / D_v)`` bits
(the rate-distortion function of a Gaussian source). Bits are shared by reverse water-filling: at one price of
a bit over all components of all modules. Names, shapes and headers are free here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from paring import lowrank
from paring.coding import Factors

F64 = npt.NDArray[np.float64]


def bound_bytes(modules: Sequence[Factors], error: float) -> float:
    """The least bytes at a relative ``error`` of the updates."""
    square, n_out, n_in = (np.concatenate(column) for column in zip(*map(_module, modules), strict=True))
    energy = float(square.sum())
    if not energy:
        return 0.0
    low, high = 1e-14 * square.max(), square.max()
    for _ in range(80):
        middle = math.sqrt(low * high)
        lost, _ = _at(middle, square, n_out, n_in)
        low, high = (low, middle) if math.sqrt(lost / energy) > error else (middle, high)
    return _at(low, square, n_out, n_in)[1] / 8


def _module(factors: Factors) -> tuple[F64, F64, F64]:
    s = lowrank.svd(factors.A, factors.B * np.float64(factors.scale))[1]
    return s**2, np.full(len(s), float(len(factors.B))), np.full(len(s), float(factors.A.shape[1]))


def _at(price: float, square: F64, n_out: F64, n_in: F64) -> tuple[float, float]:
    """What is lost, and bits, when a bit costs ``price``."""
    D_u, D_v = np.full_like(square, 0.1), np.full_like(square, 0.1)
    unit = price / (2 * math.log(2))
    for _ in range(60):  # each side's best answer to the other one
        D_u = np.minimum(1, unit * n_out / np.maximum(square * (1 - D_v), 1e-300))
        D_v = np.minimum(1, unit * n_in / np.maximum(square * (1 - D_u), 1e-300))
    bits = (n_out * np.log2(1 / D_u) + n_in * np.log2(1 / D_v)) / 2
    lost = square * (1 - (1 - D_u) * (1 - D_v))
    dropped = lost + price * bits >= square
    return float(np.where(dropped, square, lost).sum()), float(np.where(dropped, 0.0, bits).sum())
