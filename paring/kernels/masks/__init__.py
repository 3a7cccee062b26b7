"""Merging by masks, on chunks ``vectors (models, k)`` in fp32: what is kept is added up, ``(k,)``, by
``weights (models,)``.

``reference.py`` is the specification in plain numpy, ``cpu.py`` has fused numba loops.
"""

from __future__ import annotations

from paring.kernels.merging import F32, F64


def band_sum(vectors: F32, low: F32, high: F32, weights: F64) -> F32:
    """``sum_i weights[i] * vectors[i]`` over entries whose magnitude is in ``low[i] .. high[i]``
    (both ``(models,)``, and both included); weights rounded to fp32, sums in fp32 in order of the models.
    """
    from paring.kernels.masks import cpu

    return cpu.band_sum(vectors, low, high, weights)


def consensus(vectors: F32, weights: F64, strictness: float, agree: int) -> F32:
    """The sum of ``weights[i] * vectors[i]`` where for ``agree`` models or more their own part is larger than
    ``strictness`` times what the others add to it; elsewhere zero. All in fp32."""
    from paring.kernels.masks import cpu

    return cpu.consensus(vectors, weights, strictness, agree)


def erased_sum(vectors: F32, signs: F32, weights: F64) -> tuple[F32, F32]:
    """The sum of ``weights[i] * vectors[i]`` over entries that have the sign in ``signs (k,)``, and the sum
    of their weights; fp32 ``(k,)`` each."""
    from paring.kernels.masks import cpu

    return cpu.erased_sum(vectors, signs, weights)


def variance(vectors: F32) -> F32:
    """The mean square distance of the models' entries from their mean, ``(k,)``, in fp32."""
    from paring.kernels.masks import cpu

    return cpu.variance(vectors)
