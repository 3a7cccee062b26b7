"""Shards that are alike: near parallel, whatever their signs and sizes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from paring.codecs.shards import Index, Moves

F64 = npt.NDArray[np.float64]
F32 = npt.NDArray[np.float32]
_COSINE = 0.9
_SAMPLE, _BLOCK = 256, 1024
_STEPS = 6  # of k-means


def _units(shards: F64) -> F32:
    norms = np.linalg.norm(shards, axis=1, keepdims=True)
    return np.asarray(shards / np.where(norms > 0, norms, 1), np.float32)


def neighbours(shards: F64) -> float:
    """The share of shards (n, d) that have another one like them, of a sample spread over all."""
    units = _units(shards)
    some = np.arange(0, len(units), max(1, len(units) // _SAMPLE))
    cosines = np.abs(units[some] @ units.T)
    cosines[np.arange(len(some)), some] = 0
    full = np.linalg.norm(units[some], axis=1) > 0
    return float((cosines.max(axis=1) > _COSINE)[full].mean()) if full.any() else 0.0


@dataclass(frozen=True, slots=True, eq=False)
class Clusters:
    """Shards (n, d) by their first alike one: ``index`` (n,) says which of ``words``, places of shards, and
    ``moves`` (n,) what makes that one like it: bit 0 flips signs, the rest is a power of two.
    """

    words: npt.NDArray[np.int64]
    index: Index
    moves: Moves

    def means(self, shards: F64, weights: F64) -> tuple[F64, F64]:
        """The codewords (K, d) that fit the shards best, each counted ``weights`` (n,), and what errors in
        them count (K,).
        """
        factor = np.ldexp(np.where(self.moves & 1, -1.0, 1.0), (self.moves >> 1).astype(np.int32))
        counted: npt.NDArray[Any] = np.bincount(self.index, weights * factor**2, len(self.words))
        out = np.zeros((len(self.words), shards.shape[1]))
        np.add.at(out, self.index, (weights * factor)[:, None] * shards)
        return out / np.where(counted > 0, counted, 1)[:, None], counted


def cluster(shards: F64) -> Clusters:
    """Every one of ``shards`` (n, d) with the first one that it is like."""
    units, norms = _units(shards), np.linalg.norm(shards, axis=1)
    words: list[int] = []
    index = np.zeros(len(units), np.int64)
    for start in range(0, len(units), _BLOCK):
        block = units[start : start + _BLOCK]
        best = np.full(len(block), -1)
        if words:
            cosines = np.abs(block @ units[words].T)
            near = cosines.argmax(axis=1)
            best = np.where(cosines[np.arange(len(block)), near] > _COSINE, near, -1)
        inside = np.abs(block @ block.T) > _COSINE
        for at in range(len(block)):
            if best[at] < 0:
                best[at] = len(words)
                words.append(start + at)
                best[(best < 0) & inside[at]] = best[at]
        index[start : start + _BLOCK] = best
    firsts = np.array(words, np.int64)
    lead = firsts[index]
    flip = (np.einsum("nd,nd->n", units, units[lead]) < 0).astype(np.int16)
    with np.errstate(divide="ignore", invalid="ignore"):
        power = np.round(np.log2(norms / norms[lead]))
    power = np.clip(np.nan_to_num(power, nan=0.0, posinf=0.0, neginf=0.0), -64, 64).astype(np.int16)
    return Clusters(firsts, index, ((power << 1) | flip).astype(np.int16))


@dataclass(frozen=True, slots=True)
class Quantised:
    """What k-means with ``words`` codewords leaves of the variance of shards, ``left``; the least that it
    can of Gaussian ones, ``bound``; bits of all indices; and the share of shards that have another one like
    them.
    """

    words: int
    left: float
    bound: float
    bits_index: float
    alike: float


def quantise(shards: F64) -> Quantised:
    """K-means of shards (n, d), at most 4096 of them, from a fixed start; K is 256, or a quarter of them."""
    some = shards[:: max(1, -(-len(shards) // 4096))]
    words = max(1, min(256, len(some) // 4))
    centres = some[:: max(1, len(some) // words)][:words].copy()
    for _ in range(_STEPS):
        distances = (centres**2).sum(axis=1) - 2 * some @ centres.T
        index = distances.argmin(axis=1)
        counts = np.bincount(index, minlength=len(centres))
        sums = np.zeros(centres.shape)
        np.add.at(sums, index, some)
        centres = np.where(counts[:, None] > 0, sums / np.maximum(counts, 1)[:, None], centres)
    energy = float((some**2).sum()) or 1.0
    left = float(((some - centres[index]) ** 2).sum()) / energy
    bits = float(np.log2(len(centres)))
    bound = 2.0 ** (-2 * bits / shards.shape[1])
    return Quantised(len(centres), left, bound, bits * len(shards), neighbours(shards))
