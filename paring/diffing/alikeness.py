"""How alike models are, from sums over their entries: change, cosine, signs."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np

from paring.merging.models import F32, F64


def signs(deltas: F32) -> tuple[F64, F64]:
    """Of ``deltas (models, k)``, ``(models, models)`` each: entries nonzero in both, and those whose signs
    agree. Exact: chunks are short.
    """
    sign = np.sign(deltas)
    both = np.abs(sign) @ np.abs(sign).T
    return both.astype(np.float64), ((both + sign @ sign.T) / 2).astype(np.float64)


class Sums:
    """Sums over the entries of a tensor, or of all, and what they tell; lists follow the models.

    ``row``, fp64, is for every model: the squares of the base and its own, their products, how many entries
    differ and how many there are, ``(models,)`` each; of every two: the products of their deltas, and what
    :func:`signs` gives, ``(models, models)`` each. What is not in ``present`` has no figures.
    """

    def __init__(self, row: F64, n: int, present: Sequence[bool]) -> None:
        row = row if row.size else np.zeros(5 * n + 3 * n * n)  # of tensors that all are empty
        self.base, self.own, self.dots, self.different, self.counts = row[: 5 * n].reshape(5, n)
        self.gram, self.both, self.agree = row[5 * n :].reshape(3, n, n)
        self.present, self._pairs = present, list(combinations(range(n), 2))

    def _each(self, values: F64) -> list[float | None]:
        return [
            float(x) if here and np.isfinite(x) else None
            for x, here in zip(values, self.present, strict=True)
        ]

    def norm(self) -> list[float | None]:
        """``||delta||``."""
        return self._each(np.sqrt(np.diagonal(self.gram)))

    def change(self) -> list[float | None]:
        """``||delta|| / ||base||``; None where the base is zero."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return self._each(np.sqrt(np.diagonal(self.gram) / self.base))

    def cosine(self) -> list[float | None]:
        """Of base and model; None where one is zero."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return self._each(np.clip(self.dots / np.sqrt(self.base * self.own), -1, 1))

    def changed(self) -> list[float | None]:
        """The share of entries that differ from the base's."""
        return self._each(self.different / np.maximum(self.counts, 1))

    def delta_cosine(self) -> list[float | None]:
        """Of each pair; None where a delta is zero."""
        norms = np.sqrt(np.diagonal(self.gram))
        found = (self._ratio(self.gram[i, j], norms[i] * norms[j]) for i, j in self._pairs)
        return [None if x is None else min(1.0, max(-1.0, x)) for x in found]

    def agreement(self) -> list[float | None]:
        """Of each pair, over entries that both have changed."""
        return [self._ratio(self.agree[i, j], self.both[i, j]) for i, j in self._pairs]

    @staticmethod
    def _ratio(part: Any, whole: Any) -> float | None:
        return float(part / whole) if whole > 0 else None


def square(pairs: Sequence[float | None], n: int) -> list[list[float | None]]:
    """A symmetric matrix of what was found for pairs; 1 on its diagonal."""
    out: list[list[float | None]] = [[1.0] * n for _ in range(n)]
    for (i, j), value in zip(combinations(range(n), 2), pairs, strict=True):
        out[i][j] = out[j][i] = value
    return out
