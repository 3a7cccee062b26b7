"""The rank of a delta: how its squared norm spreads over its singular values."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from paring.merging.models import F32, F64, Chunk, Models

#: a matrix is widened to fp64 in pieces of about this many entries
_PIECE = 1 << 22
#: squared singular values below this share of the largest are rounding
_NOTHING = 1e-13


def dense(models: Models, index: int) -> F32:
    """The first model's vector in one tensor, ``(n,)``. Raises BadValueError for NaN, with file, tensor."""
    out = np.empty(models.targets[index].numel, np.float32)

    def work(chunks: Iterator[Chunk]) -> None:
        for chunk in chunks:
            out[chunk.place.start : chunk.stop] = chunk.vectors[0]

    for _ in models.visit(work, models.spans([index]), 1):
        pass
    return out


def spectrum(D: F32) -> tuple[float, int] | None:
    """Of a matrix ``D (out, in)`` its effective rank ``exp(-sum p log p)``, ``p = s / sum s`` (Roy, Vetterli
    2007), and how many components hold 90 % of ``||D||^2``. Eigenvalues of the smaller Gram matrix, in fp64;
    None for a zero matrix.
    """
    if D.shape[0] > D.shape[1]:
        D = D.T
    gram, step = np.zeros((len(D), len(D))), max(1, _PIECE // max(1, len(D)))
    for start in range(0, D.shape[1], step):
        part = D[:, start : start + step].astype(np.float64)
        gram += part @ part.T
    return ranks_of(np.sqrt(np.maximum(np.linalg.eigvalsh(gram)[::-1], 0.0)))


def ranks_of(s: F64) -> tuple[float, int] | None:
    """The same from singular values ``(k,)``, falling."""
    if not s.size or s[0] <= 0:
        return None
    s = s[s * s > _NOTHING * s[0] * s[0]]
    p: Any = s / s.sum()
    held = np.cumsum(s * s) / (s * s).sum()
    return float(np.exp(-(p * np.log(p)).sum())), int((held < 0.9).sum()) + 1
