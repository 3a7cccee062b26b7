"""Merging rules on chunks: ``vectors (models, k)``, fp32, and ``weights (models,)`` in; the merged vector
``(k,)`` out.

``reference.py`` is the specification in plain numpy, ``cpu.py`` has fused numba loops, ``gpu.py`` torch: what
is said of numpy arrays holds of torch tensors, which go to ``gpu`` and come back where they are.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from paring.kernels import module_for

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
U16 = npt.NDArray[np.uint16]


def _for(vectors: Any) -> ModuleType:
    return module_for("merging", vectors)


def weighted_sum(vectors: F32, weights: F64) -> F32:
    """``sum_i weights[i] * vectors[i]``, weights rounded to fp32, sums in fp32 in order of the models."""
    found: F32 = _for(vectors).weighted_sum(vectors, weights)
    return found


def mix(rows: U16, k: int, base: bool, weights: F64, scale: float, out: U16) -> int:
    """bf16 to bf16: fill ``out (k,)`` with the weighted sum of the first columns of ``rows (models, n)``.

    With ``base``, row 0 is the base: the sum is of the others' differences from it, times ``scale``, plus the
    base; without it ``scale`` is 1. ``weights`` are one for each row that is added up. It has the bits that
    widening, :func:`weighted_sum` and narrowing give. Returns how many updates that are not zero leave the
    base as it is; -1 where anything is not finite.
    """
    from paring.kernels.merging import bits

    return bits.mix(rows, k, base, weights, scale, out)


def gram(vectors: F32) -> F64:
    """Inner products ``(models, models)``, in fp64."""
    found: F64 = _for(vectors).gram(vectors)
    return found


def elected(vectors: F32, thresholds: F32, weights: F64, sign: str) -> F32:
    """Signs ``(k,)`` elected after trimming below ``thresholds (models,)``; 0 where they cancel.

    ``sign`` is ``mass``, the sign of the weighted sum, or ``count``, that of the weighted sum of signs.
    """
    found: F32 = _for(vectors).elected(vectors, thresholds, weights, sign)
    return found


def majority(vectors: F32, thresholds: F32, weights: F64, sign: str) -> float:
    """The sum of the signs that :func:`elected` gives."""
    return float(elected(vectors, thresholds, weights, sign).sum())  # whole numbers below 2^24: exact


def ties(vectors: F32, thresholds: F32, weights: F64, sign: str, combine: str, cancelled: float) -> F32:
    """TIES: trim, elect signs, ``cancelled`` (-1, 0, 1) where they cancel, and combine what agrees.

    What agrees are weighted entries, a negative weight's with the opposite sign. ``combine`` is the ``mean``
    (their sum over that of the weights' magnitudes), the ``sum``, or the one of largest magnitude, ``max``.
    """
    found: F32 = _for(vectors).ties(vectors, thresholds, weights, sign, combine, cancelled)
    return found


def pcb_scores(vectors: F32, low: F32, high: F32, rule: str) -> F32:
    """Parameter competition balancing before the drop, ``(models, k)``: intra times inter.

    ``low``, ``high`` ``(models,)`` winsorise the magnitudes.
    """
    found: F32 = _for(vectors).pcb_scores(vectors, low, high, rule)
    return found


def pcb(vectors: F32, low: F32, high: F32, threshold: F32, top: F32, weights: F64, rule: str) -> F32:
    """The same, dropped below ``threshold (models,)``, scaled to one at ``top (models,)``, and merged."""
    found: F32 = _for(vectors).pcb(vectors, low, high, threshold, top, weights, rule)
    return found
