"""Semidiscrete decomposition of a low-rank matrix at a price per bit.

A matrix ``M = B @ A (out, in)`` is approximated by a short sum of ternary outer products, ``sum_c s_c p_c
q_c^T`` with ``p_c (out,)`` and ``q_c (in,)`` in {-1, 0, +1}: the form of O'Leary and Peleg (1983) and Kolda
and O'Leary (1998), here with the entropy of the vectors in the objective. Terms are found greedily on the
residual; within a term, p and q are improved in turn. For a fixed partner, the best ternary vector keeps the
entries above some threshold: every threshold on a grid is tried and the one with the largest

    captured energy - slope * bits,        bits = n (H(k) + k) + SIDE_BITS  for density k

wins. A term that does not pay is dropped. ``M`` is never formed: everything runs on A, B and the terms found
so far. Energies and final scales are fp64, vectors on the way may be fp32; deterministic.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

#: what a rank vector costs beyond its entries: its scale and its density class, about
SIDE_BITS = 8.0
#: thresholds tried are multiples of the vector's rms over this number
STEPS_PER_RMS = 12
#: and end at this many times the rms
TOP_RMS = 5
#: power steps towards the leading direction of the residual, from which a term starts
POWER_STEPS = 4
#: how often p and q are improved in turn when a term is new
ALTERNATIONS = 3

F64 = npt.NDArray[np.float64]
Trits = npt.NDArray[np.int8]


def fit(A: F64, B: F64, slope: float, sweeps: int) -> tuple[Trits, Trits, F64]:
    """Terms of ``B @ A`` at ``slope`` (energy a bit): P ``(r, out)``, Q ``(r, in)``, scale ``(r,)``.

    At most r terms, in order of falling energy; unused ones are zero. ``sweeps`` is how often all terms are
    improved again after the greedy build.
    """
    from paring.kernels.semidiscrete import cpu

    out: tuple[Trits, Trits, F64] = cpu.fit(A, B, slope, sweeps)
    return out
