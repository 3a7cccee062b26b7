"""The specification of :mod:`paring.kernels.order` in plain numpy."""

from __future__ import annotations

import numpy as np

from paring.kernels.order import F32, HIGH, LOW, Counts, Keys, keys


def high(values: F32) -> Counts:
    keys = (values.view(np.uint32) & 0x7FFFFFFF) >> 15
    return np.bincount(keys, minlength=HIGH)


def low(values: F32, bucket: int) -> Counts:
    keys = values.view(np.uint32) & 0x7FFFFFFF
    return np.bincount(keys[keys >> 15 == bucket] & 0x7FFF, minlength=LOW)


def between(values: F32, signed: bool, low: int, high: int) -> tuple[int, Keys]:
    found = keys(values, signed)
    return int((found < low).sum()), found[(found >= low) & (found <= high)]


def count(values: F32, signed: bool, low: int, shift: int) -> tuple[int, Counts]:
    found = keys(values, signed).astype(np.int64)
    bins = (found - low) >> shift
    return int((found < low).sum()), np.bincount(bins[(bins >= 0) & (bins < HIGH)], minlength=HIGH)
