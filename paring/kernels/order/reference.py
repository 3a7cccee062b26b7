"""The specification of :mod:`paring.kernels.order` in plain numpy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from paring.kernels.order import F32, HIGH, LOW, Bracket, Counts, Keys, keys


def high(values: F32) -> Counts:
    keys = (values.view(np.uint32) & 0x7FFFFFFF) >> 15
    return np.bincount(keys, minlength=HIGH)


def low(values: F32, bucket: int) -> Counts:
    keys = values.view(np.uint32) & 0x7FFFFFFF
    return np.bincount(keys[keys >> 15 == bucket] & 0x7FFF, minlength=LOW)


def _between(values: F32, signed: bool, low: int, high: int) -> tuple[int, Keys]:
    found = keys(values, signed)
    return int((found < low).sum()), found[(found >= low) & (found <= high)]


def brackets(values: F32, signed: bool, wanted: Sequence[Bracket]) -> list[tuple[int, Keys]]:
    return [_between(values[row], signed, low, high) for row, low, high in wanted]


def count(values: F32, signed: bool, low: int, shift: int) -> tuple[int, Counts]:
    found = keys(values, signed).astype(np.int64)
    bins = (found - low) >> shift
    return int((found < low).sum()), np.bincount(bins[(bins >= 0) & (bins < HIGH)], minlength=HIGH)
