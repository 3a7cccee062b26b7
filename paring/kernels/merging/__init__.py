"""Merging rules on chunks: ``vectors (models, k)``, fp32, in; the merged vector ``(k,)`` out.

``reference.py`` is the specification in plain numpy, ``cpu.py`` has fused numba loops.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]


def weighted_sum(vectors: F32, weights: F64) -> F32:
    """``sum_i weights[i] * vectors[i]``, weights rounded to fp32, sums in fp32 in order of the models."""
    from paring.kernels.merging import cpu

    return cpu.weighted_sum(vectors, weights)


def gram(vectors: F32) -> F64:
    """Inner products ``(models, models)``, in fp64."""
    from paring.kernels.merging import cpu

    return cpu.gram(vectors)


def elected(vectors: F32, thresholds: F32, weights: F64, sign: str) -> F32:
    """Signs ``(k,)`` elected after trimming below ``thresholds (models,)``; 0 where they cancel.

    ``sign`` is ``mass``, the sign of the weighted sum, or ``count``, that of the weighted sum of signs.
    """
    from paring.kernels.merging import cpu

    return cpu.elected(vectors, thresholds, weights, sign)


def ties(vectors: F32, thresholds: F32, weights: F64, sign: str, combine: str, cancelled: float) -> F32:
    """TIES: trim, elect signs, ``cancelled`` (-1, 0, 1) where they cancel, and combine what agrees.

    ``combine`` is the ``mean`` or ``sum`` of ``weights * vectors``, or the one of largest magnitude, ``max``.
    """
    from paring.kernels.merging import cpu

    return cpu.ties(vectors, thresholds, weights, sign, combine, cancelled)


def pcb_scores(vectors: F32, low: F32, high: F32, rule: str) -> F32:
    """Parameter competition balancing before the drop, ``(models, k)``: intra times inter.

    ``low``, ``high`` ``(models,)`` winsorise the magnitudes.
    """
    from paring.kernels.merging import cpu

    return cpu.pcb_scores(vectors, low, high, rule)


def pcb(vectors: F32, low: F32, high: F32, threshold: F32, top: F32, weights: F64, rule: str) -> F32:
    """The same, dropped below ``threshold (models,)``, scaled to one at ``top (models,)``, and merged."""
    from paring.kernels.merging import cpu

    return cpu.pcb(vectors, low, high, threshold, top, weights, rule)
