"""Tensors as files store them, in numpy: no torch needed to read, round or write one.

A dtype is named by its safetensors code (``"F32"``, ``"BF16"``, ...). numpy has no bfloat16 and no float8:
their bits are held in ``uint16`` and ``uint8``. :class:`Stored` keeps code and bits together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from paring.errors import BadValueError, OptionError, UnsupportedError

Array = npt.NDArray[Any]

#: safetensors code -> numpy dtype that holds its bits, little endian
STORAGE: dict[str, np.dtype[Any]] = {
    code: np.dtype(kind)
    for code, kind in {
        "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2",
        "F8_E4M3": "u1", "F8_E5M2": "u1", "F8_E8M0": "u1",
        "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1",
        "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1",
        "BOOL": "?", "C64": "<c8",
    }.items()
}  # fmt: skip
#: the dtypes that paring computes with; the rest is carried unchanged
FLOATS = ("F64", "F32", "F16", "BF16")
#: as users type them
_TYPED = {"fp64": "F64", "fp32": "F32", "fp16": "F16", "bf16": "BF16"}
#: what configurations of models call them
TORCH = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def itemsize(dtype: str) -> int:
    """Bytes an element of the safetensors dtype ``dtype`` takes."""
    return STORAGE[dtype].itemsize


@dataclass(frozen=True, slots=True, eq=False)
class Stored:
    """A tensor as stored: ``data`` is C-contiguous, of dtype ``STORAGE[dtype]`` and of shape ``shape``."""

    dtype: str
    data: Array

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.data.shape)

    @property
    def numel(self) -> int:
        return int(self.data.size)

    @property
    def nbytes(self) -> int:
        return int(self.data.nbytes)

    def tobytes(self) -> bytes:
        return self.data.tobytes()

    def f32(self) -> npt.NDArray[np.float32]:
        """The values in ``shape``, fp32 (fp64 is rounded to nearest even). Raises UnsupportedError for other
        kinds."""
        if self.dtype == "BF16":
            return (self.data.astype(np.uint32) << 16).view(np.float32)
        if self.dtype in FLOATS:
            with np.errstate(over="ignore"):
                return self.data.astype(np.float32)
        raise UnsupportedError(f"tensors of dtype {self.dtype} hold no floating-point values to work on")

    def f64(self) -> npt.NDArray[np.float64]:
        """The values in ``shape``, fp64, which holds every one. Raises UnsupportedError for other kinds."""
        return (self.data if self.dtype == "F64" else self.f32()).astype(np.float64)


def from_bytes(dtype: str, shape: Sequence[int], raw: bytes | memoryview | Array) -> Stored:
    """View ``raw`` (exactly ``prod(shape) * itemsize`` bytes) as a tensor; no copy where alignment allows."""
    flat = np.frombuffer(raw, dtype=np.uint8)
    data = (
        flat.view(STORAGE[dtype])
        if flat.ctypes.data % itemsize(dtype) == 0
        else flat.copy().view(STORAGE[dtype])
    )
    return Stored(dtype, data.reshape(tuple(shape)))


def from_f32(values: Array, dtype: str, name: str = "a tensor") -> Stored:
    """Round fp32 or fp64 ``values``, of any shape, once, to nearest even, to ``dtype``.

    Raises BadValueError when a finite value overflows to infinity (fp16 ends at 65504), UnsupportedError for
    a dtype that is not floating point.
    """
    if dtype == "BF16":
        bits = _odd_f32(np.asarray(values, order="C")).view(np.uint32)
        rounded = (bits + (np.uint32(0x7FFF) + ((bits >> 16) & np.uint32(1)))) >> np.uint32(16)
        out = Stored(dtype, rounded.astype(np.uint16))
        finite = bool(((out.data & 0x7F80) != 0x7F80).all())
    elif dtype in FLOATS:
        with np.errstate(over="ignore"):
            out = Stored(dtype, np.asarray(values, STORAGE[dtype], order="C"))
        finite = bool(np.isfinite(out.data).all())
    else:
        raise UnsupportedError(f"{name}: cannot write floating-point values as {dtype}")
    if not finite and bool(np.isfinite(values).all()):
        raise BadValueError(f"{name}: a value is too large for {dtype}; ask for a wider --dtype")
    return out


def cast(stored: Stored, dtype: str, name: str = "a tensor") -> Stored:
    """``stored`` in another dtype, each value rounded once; itself where it has that dtype already.

    Raises what :func:`from_f32` raises, UnsupportedError also for a tensor that is not floating point.
    """
    if stored.dtype == dtype:
        return stored
    return from_f32(stored.data if stored.dtype == "F64" else stored.f32(), dtype, name)


def _odd_f32(values: Array) -> npt.NDArray[np.float32]:
    """fp32 from which fp64 ``values`` can be rounded further as if at once: cut, inexact ones made odd."""
    with np.errstate(over="ignore"):
        near = values.astype(np.float32)
    if values.dtype != np.float64:
        return near
    cut = np.where(np.abs(near) > np.abs(values), np.nextafter(near, np.float32(0)), near)
    odd = cut.view(np.uint32) | (cut != values)
    return np.where(np.isfinite(values) & np.isfinite(cut), odd.view(np.float32), near)


def parse_dtype(text: str | None) -> str | None:
    """The safetensors code for fp64, fp32, fp16 or bf16. Raises OptionError for another word."""
    if text is None:
        return None
    if text not in _TYPED:
        raise OptionError(f"--dtype {text}: expected {', '.join(_TYPED)}")
    return _TYPED[text]


def numel(shape: Sequence[int]) -> int:
    """Number of elements of ``shape``; 1 for a scalar, 0 when an axis is empty."""
    return math.prod(shape)


def first_nonfinite(stored: Stored) -> int | None:
    """Flat index of the first NaN or infinity, or None. Integer and boolean tensors have none."""
    if stored.dtype == "BF16":
        bad = (stored.data & 0x7F80) == 0x7F80
    elif stored.dtype in FLOATS:
        bad = ~np.isfinite(stored.data)
    else:
        return None
    flat = bad.reshape(-1)
    return int(flat.argmax()) if flat.any() else None


def refuse_nonfinite(stored: Stored, name: str, where: object) -> None:
    """Raise BadValueError when ``stored``, the tensor ``name`` of the file ``where``, is not finite."""
    if (at := first_nonfinite(stored)) is not None:
        raise BadValueError(
            f"{where}: {name} holds NaN or infinity (first at flat index {at}): the file is broken, get or "
            "train it again"
        )
