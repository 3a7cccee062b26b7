"""Ternary vectors: bit planes, their arithmetic by popcount, and a block coder close to their entropy.

``reference.py`` is the specification; ``cpu.py``, ``encoder.py`` and ``decoder.py`` are numba loops, compiled
on first use and kept on disk; ``gpu.py`` makes and reads planes with torch, wherever the tensor is. The
functions here pick: torch tensors go to ``gpu``, numpy arrays to ``cpu``. ``tensor.py`` has whole tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from paring.kernels import module_for


def _for(array: Any) -> Any:
    return module_for("ternary", array)


def threshold(x: Any, t: float) -> tuple[Any, Any]:
    """Planes (ceil(n / 8),), uint8, of ``x`` (n,), fp32: the signs of the entries with ``|x| >= t``."""
    mask, sign = _for(x).threshold(x, t)
    return mask, sign


def pack(trits: Any) -> tuple[Any, Any]:
    """Planes (ceil(n / 8),), uint8, of ``trits`` (n,), int8 in -1, 0, +1."""
    mask, sign = _for(trits).pack(trits)
    return mask, sign


def unpack(mask: Any, sign: Any, n: int) -> Any:
    """The first ``n`` trits (n,), int8, of two planes."""
    return _for(mask).unpack(mask, sign, n)


def dequantise(mask: Any, sign: Any, n: int, scale: float, dtype: str) -> Any:
    """``scale * trit`` (n,) in ``dtype`` (F64, F32, F16, BF16), rounded once to nearest even; zeros are +0.

    Raises BadValueError where the fp32 ``scale`` overflows ``dtype``.
    """
    return _for(mask).dequantise(mask, sign, n, scale, dtype)


def dot(mask_a: Any, sign_a: Any, mask_b: Any, sign_b: Any) -> int:
    """Dot product of two ternary vectors of unit scale, given as numpy planes."""
    return int(_for(mask_a).dot(mask_a, sign_a, mask_b, sign_b))


def cosine(mask_a: Any, sign_a: Any, mask_b: Any, sign_b: Any) -> float:
    """Cosine of two ternary vectors, given as numpy planes; 0 where one of them is zero."""
    return float(_for(mask_a).cosine(mask_a, sign_a, mask_b, sign_b))


def hamming(mask_a: Any, sign_a: Any, mask_b: Any, sign_b: Any) -> int:
    """Number of entries in which two ternary vectors, given as numpy planes, differ."""
    return int(_for(mask_a).hamming(mask_a, sign_a, mask_b, sign_b))


def encode_block(mask: Any, sign: Any, ends: Sequence[int]) -> tuple[list[int], int, bytes]:
    """Code a block of numpy planes whose pieces end at the symbols ``ends``: classes, mode, bytes."""
    classes, mode, data = _for(mask).encode_block(mask, sign, ends)
    return classes, mode, data


def decode_block(data: bytes, mode: int, ends: Sequence[int], classes: Sequence[int]) -> tuple[Any, Any]:
    """Planes of a coded block. Raises BadFileError on bytes that are not a block."""
    mask, sign = _for(data).decode_block(data, mode, ends, classes)
    return mask, sign
