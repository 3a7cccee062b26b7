"""exp and tanh of fp32 as polynomials that compilers make vectors of; within 2 units in the last place.

The numba functions here are inlined into loops, by LLVM (what numba inlines itself becomes no vector); libm's
would be called entry by entry. Products are fused with sums, always and explicitly: half the instructions,
and the same bits wherever a loop is compiled. A processor that cannot has them done by libm, slowly.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from paring.kernels.jit import jit

_LOG2E = np.float32(1.44269504)
_LN2_HIGH, _LN2_LOW = np.float32(-0.693359375), np.float32(2.12194440e-4)  # their sum is -ln 2
_MAGIC = np.float32(12582912.0)  # 1.5 * 2^23: adding it rounds to an integer


@intrinsic
def _times_power(typingctx: Any, x: Any, k: Any) -> Any:
    """x * 2^k for a normal result, ``k`` being an integer with _MAGIC added: it moves into the exponent."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        bits, power = (builder.bitcast(arg, ir.IntType(32)) for arg in args)
        moved = builder.add(bits, builder.shl(power, ir.Constant(ir.IntType(32), 23)))
        return builder.bitcast(moved, ir.FloatType())

    return types.float32(types.float32, types.float32), codegen


@intrinsic
def _fused(typingctx: Any, a: Any, b: Any, c: Any) -> Any:
    """a * b + c, rounded once."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.fma(*args)

    return types.float32(types.float32, types.float32, types.float32), codegen


fused: Any = _fused


@jit()
def exp(x: Any) -> Any:
    """e^x for x within -87 .. 88, beyond which it stays at what it is there."""
    x = np.float32(-87) if x < np.float32(-87) else x  # min() and max() would branch
    x = np.float32(88) if x > np.float32(88) else x
    moved = fused(x, _LOG2E, _MAGIC)
    k = moved - _MAGIC
    r = fused(k, _LN2_LOW, fused(k, _LN2_HIGH, x))
    # Taylor's series to the seventh power, r within +-0.3466
    p = fused(np.float32(1 / 5040), r, np.float32(1 / 720))
    p = fused(p, r, np.float32(1 / 120))
    p = fused(p, r, np.float32(1 / 24))
    p = fused(p, r, np.float32(1 / 6))
    p = fused(p, r, np.float32(0.5))
    p = fused(p, r, np.float32(1))
    p = fused(p, r, np.float32(1))
    return _times_power(p, moved)  # type: ignore[call-arg]


@jit()
def tanh_of_unit(x: Any) -> Any:
    """Hyperbolic tangent of x within -1 .. 1."""
    s = x * x
    # minimax of (tanh(x) / x - 1) / x^2, for the relative error of the whole: 4.6e-9
    p = fused(np.float32(-3.58451986322e-4), s, np.float32(2.30136453191e-3))
    p = fused(p, s, np.float32(-7.94610633269e-3))
    p = fused(p, s, np.float32(2.14866574963e-2))
    p = fused(p, s, np.float32(-5.38798026823e-2))
    p = fused(p, s, np.float32(1.33323445725e-1))
    p = fused(p, s, np.float32(-3.33332954319e-1))
    return fused(x * s, p, x)


@jit()
def tanh(x: Any) -> Any:
    """Hyperbolic tangent: a polynomial near zero, by exp elsewhere."""
    a = abs(x)
    a = np.float32(9) if a > np.float32(9) else a
    large = np.float32(1) - np.float32(2) / (exp(np.float32(2) * a) + np.float32(1))
    large = large if x >= np.float32(0) else -large
    return tanh_of_unit(x) if a <= np.float32(1) else large
