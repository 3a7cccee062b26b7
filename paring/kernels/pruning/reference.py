"""The specification of :mod:`paring.kernels.pruning` in plain numpy."""

from __future__ import annotations

import numpy as np

from paring.dtypes import STORAGE, Stored
from paring.kernels.pruning import BINS, F32, U16, Bits, Counts, Mask, Sums


def counts(bits: U16) -> Counts:
    return np.bincount(bits & 0x7FFF, minlength=BINS)


def cut(bits: U16, dtype: str, first: int, out: U16) -> Sums:
    size = bits & 0x7FFF
    kept = size >= first
    out[:] = np.where(kept, bits, 0)
    squares = Stored(dtype, bits.view(STORAGE[dtype])).f64() ** 2
    zeros = int(np.count_nonzero(out & 0x7FFF == 0))
    lost, total = float(squares[~kept].sum()), float(squares.sum())
    return Sums(int(kept.sum()), int((size == 0).sum()), zeros, lost, total)


def best(scores: F32, keep: int) -> Mask:
    mask = np.zeros(scores.shape, np.bool_)
    last = np.argsort(scores, axis=1, kind="stable")[:, scores.shape[1] - keep :]
    np.put_along_axis(mask, last, True, axis=1)
    return mask


def grouped(scores: F32, keep: int, of: int) -> Mask:
    return best(scores.reshape(-1, of), keep).reshape(scores.shape)


def masked(bits: Bits, values: F32, keep: Mask, out: Bits) -> Sums:
    out[:] = np.where(keep, bits, 0)
    squares = values.astype(np.float64) ** 2
    zero = values == 0
    lost, total = float(squares[~keep].sum()), float(squares.sum())
    return Sums(int(keep.sum()), int(zero.sum()), int((zero | ~keep).sum()), lost, total)
