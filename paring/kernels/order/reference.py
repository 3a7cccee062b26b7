"""The specification of :mod:`paring.kernels.order` in plain numpy."""

from __future__ import annotations

import numpy as np

from paring.kernels.order import F32, HIGH, LOW, Counts


def high(values: F32) -> Counts:
    keys = (values.view(np.uint32) & 0x7FFFFFFF) >> 15
    return np.bincount(keys, minlength=HIGH)


def low(values: F32, bucket: int) -> Counts:
    keys = values.view(np.uint32) & 0x7FFFFFFF
    return np.bincount(keys[keys >> 15 == bucket] & 0x7FFF, minlength=LOW)
