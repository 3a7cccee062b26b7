"""The sparse codec: the values that are not zero, and where they are; bit for bit.

Zero is the entry whose bits are all zero: -0.0 and every NaN are values. Places are told in one of two
forms. A *mask* has a bit for every entry. *2:4* is for tensors with at most two values in every four
consecutive entries: two of four can be chosen in six ways, three such choices fit a byte, and every group
has two values, zeros where it has fewer. Places and values are then coded by the bytes codec, which finds
what masks and exponents repeat.

A payload is, little endian: the length of the header (uint32); that of the inner payload (uint64); the
version of the bytes codec in it (uint8); the header; the inner payload; and zeros, so that there is a byte
for every 32,768 entries of all tensors. The header is a raw deflate stream of: for each tensor its form (0
mask, 1 2:4; uint8) and the number of its values (uint64). The inner payload holds for each tensor two with
one axis: its places (U8), then its values, in order.

A mask is ``ceil(n / 8)`` bytes, the first entry in the lowest bit, the rest zero. In 2:4 the pairs (0, 1),
(0, 2), (0, 3), (1, 2), (1, 3), (2, 3) of a group are digits 0 to 5, and three digits ``d0 + 6 d1 + 36 d2`` a
byte, digits beyond the last group 0.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from paring.codecs import deflated, planes
from paring.dtypes import STORAGE, Array, Stored, itemsize, numel
from paring.errors import BadFileError, BadValueError

ID = "sparse"
VERSION = 1
PACK = "sparse"

__all__ = ["FORMS", "ID", "ITEM", "PACK", "VERSION", "Form", "Sparse", "coded_bytes", "decode", "encode",
           "key", "most_bytes", "occupied", "values"]  # fmt: skip

Form = Literal["mask", "2:4"]
FORMS: tuple[Form, ...] = ("mask", "2:4")

_WHAT = "sparse data"
_HEAD, _ROW = 13, 9  # bytes before the header, and of it a tensor
U8 = npt.NDArray[np.uint8]

#: digit -> the four bits of its pair
_PAIRS = np.array([1 << a | 1 << b for a, b in itertools.combinations(range(4), 2)], np.uint8)
#: four bits -> the first digit whose pair holds them; 6 where there are more than two
_DIGITS = np.array(
    [next((d for d, pair in enumerate(_PAIRS.tolist()) if bits & ~pair == 0), 6) for bits in range(16)],
    np.uint8,
)
#: byte -> its three digits
_TRIPLES = np.array([(b % 6, b // 6 % 6, b // 36) for b in range(216)], np.uint8)


@dataclass(frozen=True, slots=True, eq=False)
class Sparse:
    """A tensor that is kept as its values and their places, in the form that is named."""

    tensor: Stored
    form: Form = "mask"

    @property
    def shape(self) -> tuple[int, ...]:
        return self.tensor.shape


ITEM = Sparse


def most_bytes(item: Sparse) -> int:
    """More bytes than ``item`` takes in practice."""
    return item.tensor.nbytes + item.tensor.numel // 8 + 64


def values(item: Sparse, dtype: str) -> npt.NDArray[np.float64]:
    """The values of ``item``, in its shape, fp64, as they are: it is kept in ``dtype``."""
    return planes.values(item.tensor, dtype)


def key(item: Sparse) -> Hashable:
    """The same for tensors that are alike: dtype, shape and all bytes."""
    return planes.key(item.tensor)


def occupied(tensor: Stored) -> U8:
    """The mask (ceil(n / 8),), uint8, of a tensor: a bit for every entry whose bits are not all zero."""
    return np.packbits(_bits(tensor) != 0, bitorder="little")


def coded_bytes(mask: U8, n: int, form: Form) -> tuple[float, int] | None:
    """What places take, nearly, in bytes, and how many values a form keeps of a tensor of ``n``
    entries with this ``mask`` (ceil(n / 8),); None where it cannot be had.
    """
    if form == "mask":
        return _entropy(mask), int(np.bitwise_count(mask).sum())
    digits = _digits(mask, n)
    return None if digits is None else (_entropy(_packed(digits)), n // 2)


def _entropy(symbols: U8) -> float:
    counts = np.bincount(symbols, minlength=1).astype(np.float64)
    counts = counts[counts > 0]
    return float((counts * (np.log2(counts.sum()) - np.log2(counts))).sum()) / 8 if len(counts) else 0.0


def encode(items: Sequence[Sparse]) -> bytes:
    """Code tensors into one payload; the same bytes for the same tensors.

    Raises BadValueError for a tensor in the form 2:4 that has three values in a group of four.
    """
    rows, inner = [], []
    for item in items:
        flat, mask = _bits(item.tensor), occupied(item.tensor)
        if item.form == "2:4":
            digits = _digits(mask, len(flat))
            if digits is None:
                raise BadValueError(
                    f"a tensor of shape {list(item.shape)} cannot be packed 2:4: it has more than two values "
                    "in a group of four, or entries that make no whole group"
                )
            mask, places = _nibbles_to_mask(_PAIRS[digits]), _packed(digits)
        else:
            places = mask
        kept = flat[_chosen(mask, len(flat))].view(STORAGE[item.tensor.dtype])
        rows.append(bytes([FORMS.index(item.form)]) + len(kept).to_bytes(8, "little"))
        inner += [Stored("U8", places), Stored(item.tensor.dtype, kept)]
    header, body = deflated.written(b"".join(rows)), planes.encode(inner)
    sizes = len(header).to_bytes(4, "little") + len(body).to_bytes(8, "little") + bytes([planes.VERSION])
    payload = b"".join((sizes, header, body))
    return payload.ljust(deflated.least_bytes([item.shape for item in items]), b"\0")


def decode(
    payload: bytes | memoryview,
    shapes: Sequence[tuple[int, ...]],
    dtypes: Sequence[str],
    select: Sequence[int] | None = None,
    threads: int = 1,
) -> list[Stored]:
    """The tensors ``select`` (all), in that order. Raises BadFileError on damage; ``threads`` is not used."""
    rows, body = _read(memoryview(payload), shapes)
    inner_shapes: list[tuple[int, ...]] = []
    inner_dtypes: list[str] = []
    for (form, count), shape, dtype in zip(rows, shapes, dtypes, strict=True):
        n = numel(shape)
        inner_shapes += [(-(-n // (8 if form == "mask" else 12)),), (count,)]
        inner_dtypes += ["U8", dtype]
    out = []
    for i in range(len(shapes)) if select is None else select:
        places, kept = planes.decode(body, inner_shapes, inner_dtypes, [2 * i, 2 * i + 1])
        out.append(_scattered(places.data, kept, rows[i][0], shapes[i]))
    return out


def _read(data: memoryview, shapes: Sequence[tuple[int, ...]]) -> tuple[list[tuple[Form, int]], memoryview]:
    """Form and number of values of each tensor, and the inner payload."""
    size, length = int.from_bytes(data[:4], "little"), int.from_bytes(data[4:12], "little")
    end = _HEAD + size + length
    if len(data) < _HEAD or len(data) != max(end, deflated.least_bytes(shapes)) or any(data[end:]):
        raise BadFileError(f"{_WHAT} is cut short, or too short for the shapes of its tensors")
    if data[12] != planes.VERSION:
        raise BadFileError(f"{_WHAT} holds values of an unknown version, {data[12]}")
    header = deflated.exactly(data[_HEAD : _HEAD + size], _ROW * len(shapes), _WHAT).tobytes()
    rows: list[tuple[Form, int]] = []
    for i, shape in enumerate(shapes):
        form, count, n = (
            header[_ROW * i],
            int.from_bytes(header[_ROW * i + 1 : _ROW * i + 9], "little"),
            numel(shape),
        )
        sound = count <= n if form == 0 else form == 1 and n % 4 == 0 and count == n // 2
        if not sound:
            raise BadFileError(f"{_WHAT} is damaged: no such form, or not so many values")
        rows.append((FORMS[form], count))
    return rows, data[_HEAD + size : end]


def _scattered(places: U8, kept: Stored, form: Form, shape: tuple[int, ...]) -> Stored:
    n = numel(shape)
    if form == "mask":
        spare = -n % 8
        if int(np.bitwise_count(places).sum()) != kept.numel or (spare and places[-1] >> (8 - spare)):
            raise BadFileError(f"{_WHAT} is damaged: its mask has another number of values")
        mask = places
    else:
        if places.size and int(places.max()) >= len(_TRIPLES):
            raise BadFileError(f"{_WHAT} is damaged: no such places of two in four")
        digits = _TRIPLES[places].reshape(-1)
        if digits[n // 4 :].any():
            raise BadFileError(f"{_WHAT} is damaged: places beyond the last group")
        mask = _nibbles_to_mask(_PAIRS[digits[: n // 4]])
    flat = np.zeros(n, f"<u{itemsize(kept.dtype)}")
    flat[_chosen(mask, n)] = _bits(kept)
    return Stored(kept.dtype, flat.view(STORAGE[kept.dtype]).reshape(shape))


def _bits(tensor: Stored) -> Array:
    """The entries as unsigned integers, flat."""
    return tensor.data.reshape(-1).view(f"u{itemsize(tensor.dtype)}")


def _chosen(mask: U8, n: int) -> npt.NDArray[np.bool_]:
    return np.unpackbits(mask, count=n, bitorder="little").view(np.bool_)


def _digits(mask: U8, n: int) -> U8 | None:
    """The pair of every group, None where a group has more than two values or is not whole."""
    if n % 4:
        return None
    nibbles = np.stack([mask & 15, mask >> 4], axis=1).reshape(-1)[: n // 4]
    digits: U8 = _DIGITS[nibbles]
    return None if digits.size and int(digits.max()) > 5 else digits


def _nibbles_to_mask(nibbles: U8) -> U8:
    even = np.append(nibbles, np.zeros(len(nibbles) % 2, np.uint8))
    return np.bitwise_or(even[::2], np.left_shift(even[1::2], 4), dtype=np.uint8)


def _packed(digits: U8) -> U8:
    padded = np.append(digits, np.zeros(-len(digits) % 3, np.uint8))
    packed: U8 = padded[::3] + 6 * padded[1::3] + 36 * padded[2::3]
    return packed
