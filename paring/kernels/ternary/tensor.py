"""Ternary tensors: planes and scales by segment, from and to dense arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from paring.dtypes import numel
from paring.errors import BadValueError
from paring.kernels import ternary as kernels
from paring.kernels.ternary.reference import Bytes

Layout = Literal["whole", "rows", "columns"]
LAYOUTS: tuple[Layout, ...] = get_args(Layout)


@dataclass(frozen=True, eq=False)
class Ternary:
    """A tensor of ``shape`` whose segments each have one fp32 scale and share two bit planes.

    ``layout`` says what a segment is: the whole tensor in C order, a row (axis 0), or a column of the tensor
    seen as (shape[0], -1). ``mask`` and ``sign`` (symbols,), uint8, hold segment after segment, each from a
    byte boundary on, padded with zeros; ``scale`` (segments,) is float32.
    """

    shape: tuple[int, ...]
    layout: Layout
    mask: Bytes
    sign: Bytes
    scale: npt.NDArray[np.float32]


def segments(shape: Sequence[int], layout: Layout) -> tuple[int, int]:
    """How many segments, and how many entries each. Raises BadValueError for the rows of a scalar."""
    if layout == "whole":
        return 1, numel(shape)
    if not shape:
        raise BadValueError(f"a scalar has no {layout}")
    rows, columns = shape[0], numel(shape[1:])
    return (rows, columns) if layout == "rows" else (columns, rows)


def rows_of(data: npt.NDArray[Any], layout: Layout) -> npt.NDArray[Any]:
    """An array as its segments, ``(segments, entries)``."""
    count, n = segments(data.shape, layout)
    return data.reshape(n, count).T if layout == "columns" else data.reshape(count, n)


def laid(rows: npt.NDArray[Any], layout: Layout, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """The array of ``shape``, in C order, that has these ``rows`` (segments, entries)."""
    return np.ascontiguousarray(rows.T if layout == "columns" else rows).reshape(shape)


def from_trits(trits: npt.NDArray[np.int8], scale: npt.ArrayLike, layout: Layout = "whole") -> Ternary:
    """Planes of ``trits`` (any shape), int8 in -1, 0, +1; ``scale`` (segments,), or one for all."""
    count, _ = segments(trits.shape, layout)
    mask, sign = (
        np.packbits(rows_of(bits, layout), 1, "little").reshape(-1) for bits in (trits != 0, trits < 0)
    )
    return Ternary(trits.shape, layout, mask, sign, _scales(scale, count))


def from_floats(x: npt.NDArray[np.float32], t: float, scale: float) -> Ternary:
    """Signs of the entries of ``x`` (any shape), fp32, with ``|x| >= t`` (in fp32); the others are zero. They
    are one segment.
    """
    mask, sign = kernels.threshold(np.ascontiguousarray(x).reshape(-1), t)
    return Ternary(x.shape, "whole", mask, sign, _scales(scale, 1))


def to_trits(item: Ternary) -> npt.NDArray[np.int8]:
    """The trits of ``item``, int8, in its shape."""
    count, n = segments(item.shape, item.layout)
    mask, sign = (
        np.unpackbits(plane.reshape(count, -(-n // 8)), 1, n, "little").astype(np.int8)
        for plane in (item.mask, item.sign)
    )
    trits = mask - 2 * sign
    return laid(trits, item.layout, item.shape)


def _scales(scale: npt.ArrayLike, count: int) -> npt.NDArray[np.float32]:
    return np.ascontiguousarray(np.broadcast_to(np.asarray(scale, np.float32), (count,)))
