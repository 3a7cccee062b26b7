"""exp and tanh of fp32 as polynomials that compilers make vectors of; within 2 units in the last place.

The numba functions here are inlined into loops, by LLVM (what numba inlines itself becomes no vector); libm's
would be called entry by entry.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from paring.kernels.jit import jit

_LOG2E = np.float32(1.44269504)
_LN2_HIGH, _LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
_MAGIC = np.float32(12582912.0)  # 1.5 * 2^23: adding it rounds to an integer


@intrinsic
def _times_power(typingctx: Any, x: Any, k: Any) -> Any:
    """x * 2^k for a normal result, ``k`` being an integer with _MAGIC added: it moves into the exponent."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        bits, power = (builder.bitcast(arg, ir.IntType(32)) for arg in args)
        moved = builder.add(bits, builder.shl(power, ir.Constant(ir.IntType(32), 23)))
        return builder.bitcast(moved, ir.FloatType())

    return types.float32(types.float32, types.float32), codegen


@jit()
def exp(x: Any) -> Any:
    """e^x for x within -87 .. 88, beyond which it stays at what it is there."""
    x = np.float32(-87) if x < np.float32(-87) else x  # min() and max() would branch
    x = np.float32(88) if x > np.float32(88) else x
    moved = x * _LOG2E + _MAGIC
    k = moved - _MAGIC
    r = x - k * _LN2_HIGH - k * _LN2_LOW
    # Taylor's series to the seventh power, r within +-0.3466
    p = np.float32(1 / 5040)
    p = p * r + np.float32(1 / 720)
    p = p * r + np.float32(1 / 120)
    p = p * r + np.float32(1 / 24)
    p = p * r + np.float32(1 / 6)
    p = p * r + np.float32(0.5)
    p = p * r + np.float32(1)
    p = p * r + np.float32(1)
    return _times_power(p, moved)  # type: ignore[call-arg]


@jit()
def tanh(x: Any) -> Any:
    """Hyperbolic tangent: a polynomial near zero, by exp elsewhere."""
    s = x * x
    # minimax of (tanh(x) / x - 1) / x^2 for |x| <= 0.625
    p = np.float32(-5.70498872745e-3)
    p = p * s + np.float32(2.06390887954e-2)
    p = p * s + np.float32(-5.37397155531e-2)
    p = p * s + np.float32(1.33314422036e-1)
    p = p * s + np.float32(-3.33332819422e-1)
    small = x + x * s * p
    a = abs(x)
    a = np.float32(9) if a > np.float32(9) else a
    large = np.float32(1) - np.float32(2) / (exp(np.float32(2) * a) + np.float32(1))
    large = large if x >= np.float32(0) else -large
    return small if a <= np.float32(0.625) else large
