"""What an adapter codec has to beat: the factors as trained in few bits, fewer ranks in fp16, and fp16 put
through a general-purpose coder.

Each takes the factors of one module, ``A`` (rank, in) and ``B`` (out, rank), in fp32, and returns what comes
back, in fp32, and the bytes stored. Names, shapes and headers are not counted: to the baselines' advantage.
"""

from __future__ import annotations

import lzma
from typing import Any

import numpy as np
import numpy.typing as npt

from paring.dtypes import from_f32
from paring.errors import OptionError

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]
Factors = tuple[F32, F32, int]

#: a vector's step is searched among these shares of the step that just reaches its largest magnitude
SHARES = np.linspace(0.2, 1.0, 41)


def int_quantised(A: F32, B: F32, bits: int) -> Factors:
    """(A', B', bytes): every row of A and column of B on ``2**bits`` evenly spaced levels, symmetric about 0.

    A vector's levels are +-1/2, +-3/2, ... times its step, which is kept in fp16 and is the one of the least
    squared error. Raises OptionError unless ``bits`` is between 1 and 8.
    """
    if not 1 <= bits <= 8:
        raise OptionError(f"a code has 1 to 8 bits, not {bits}")
    a, a_bytes = _rows_quantised(A, bits)
    b, b_bytes = _rows_quantised(B.T, bits)
    return a, np.ascontiguousarray(b.T), a_bytes + b_bytes


def _rows_quantised(rows: F32, bits: int) -> tuple[F32, int]:
    steps = best_steps(rows, bits)
    stored = pack(_codes(rows, steps, bits), bits)
    codes = unpack(stored, bits, rows.size).reshape(rows.shape)
    return _values(codes, steps, bits), stored.nbytes + 2 * len(steps)


def best_steps(rows: F32, bits: int) -> F32:
    """For each of ``rows`` (count, length) the step, rounded to fp16, of the least squared error, in fp32."""
    reach = np.abs(rows).max(1) / ((1 << bits) - 1) * 2
    candidates = [from_f32(reach * share, "F16").f32() for share in SHARES]
    errors = [np.square(_values(_codes(rows, step, bits), step, bits) - rows).sum(1) for step in candidates]
    best: F32 = np.take_along_axis(np.array(candidates), np.argmin(errors, 0)[None], 0)[0]
    return best


def _codes(rows: F32, steps: F32, bits: int) -> U8:
    half = 1 << (bits - 1)
    places = np.divide(rows, steps[:, None], out=np.zeros_like(rows), where=steps[:, None] > 0)
    return (np.clip(np.floor(places), -half, half - 1) + half).astype(np.uint8)


def _values(codes: U8, steps: F32, bits: int) -> F32:
    return (codes - np.float32((1 << (bits - 1)) - 0.5)) * steps[:, None]


def pack(codes: npt.NDArray[Any], bits: int) -> U8:
    """``codes``, each below ``2**bits``, as a stream of bits, highest first, zeros filling the last byte."""
    planes = np.unpackbits(codes.astype(np.uint8).reshape(-1, 1), axis=1)[:, 8 - bits :]
    return np.packbits(planes)


def unpack(stored: U8, bits: int, count: int) -> U8:
    """The ``count`` codes that ``pack`` put into ``stored``, flat."""
    planes = np.unpackbits(stored, count=count * bits).reshape(count, bits)
    return np.packbits(np.pad(planes, ((0, 0), (8 - bits, 0))), axis=1)[:, 0]


def truncated(A: F32, B: F32, rank: int) -> Factors:
    """(A', B', bytes): the best approximation of B @ A that has ``rank`` ranks, both factors rounded to fp16.

    The singular values are shared evenly between the factors. Raises OptionError unless ``rank`` is between 1
    and the rank of the factors.
    """
    if not 1 <= rank <= len(A):
        raise OptionError(f"the rank to keep is between 1 and {len(A)}, not {rank}")
    left, left_core = np.linalg.qr(B)
    right, right_core = np.linalg.qr(A.T)
    U, s, Vt = np.linalg.svd(left_core @ right_core.T)
    root = np.sqrt(s[:rank])
    a = from_f32(root[:, None] * (Vt[:rank] @ right.T), "F16")
    b = from_f32((left @ U[:, :rank]) * root, "F16")
    return a.f32(), b.f32(), a.nbytes + b.nbytes


def squeezed(A: F32, B: F32) -> Factors:
    """(A', B', bytes): the factors in fp16 through LZMA at its best, which general-purpose coders that are
    made for speed (deflate, zstd) do not come below.
    """
    a, b = from_f32(A, "F16"), from_f32(B, "F16")
    raw = a.data.tobytes() + b.data.tobytes()
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "pb": 1, "lp": 1, "lc": 3}]
    return a.f32(), b.f32(), len(lzma.compress(raw, lzma.FORMAT_RAW, filters=filters))
