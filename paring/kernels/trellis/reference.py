"""The trellis quantiser and its coder, plainly: the specification of ``cpu.py`` and ``coder.py``.

A segment of values is written as whole numbers k, one a value. Two quantisers take turns: quantiser 0 has
the levels 2 k, quantiser 1 the levels 2 k - sign(k). Which one serves a value is the lowest bit of the state
of a trellis, that moves on by the parity of k; so neighbouring values share what a finer quantiser would
spend on each of them (trellis-coded quantisation: Marcellin and Fischer 1990; entropy-coded: Fischer and Wang
1992; with zero in both quantisers as in JPEG 2000 part 2 and in VVC).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from paring.errors import BadFileError
from paring.kernels.trellis import tables

_LOW = 1 << 16


def level(quantiser: int, k: int) -> int:
    """The level that ``k`` stands for."""
    return 2 * k - (int(np.sign(k)) if quantiser else 0)


def levels(k: Sequence[int], bits: int) -> npt.NDArray[np.int32]:
    """The levels (n,) of the symbols ``k`` (n,) of one segment, in a trellis of ``2^bits`` states."""
    following, state, out = tables.next_states(bits), 0, []
    for value in k:
        out.append(level(state & 1, int(value)))
        state = int(following[state, int(value) & 1])
    return np.array(out, np.int32)


def quantise(x: npt.NDArray[Any], price: float, cls: int, bits: int, most: int) -> tuple[list[int], float]:
    """The k (n,), at most ``most`` in size, of least ``sum (x - level)^2 + price * bits``; and that sum."""
    rate, following = tables.rates(cls), tables.next_states(bits)
    span = rate.shape[1] // 2
    states = len(following)
    best: list[tuple[float, list[int]]] = [(0.0 if s == 0 else np.inf, []) for s in range(states)]
    for value in x:
        new: list[tuple[float, list[int]]] = [(np.inf, []) for _ in range(states)]
        for s, (cost, path) in enumerate(best):
            if cost == np.inf:
                continue
            for k in range(-most, most + 1):
                bit = rate[s & 1, span + min(max(k, -span), span)]
                total = cost + (value - level(s & 1, k)) ** 2 + price * bit
                t = int(following[s, k & 1])
                if total < new[t][0]:
                    new[t] = (total, [*path, k])
        best = new
    cost, path = min(best, key=lambda found: found[0])
    return path, cost


def decode_block(
    data: bytes, classes: Sequence[int], counts: Sequence[int], bits: int, state: int = 0
) -> list[int]:
    """The levels of one block: ``counts`` symbols of each segment, of model ``classes``; the first segment
    goes on from ``state``. Raises BadFileError on bytes that are not a block.
    """
    if len(data) < 4 or len(data) % 2:
        raise BadFileError("a block of trellis data is cut short")
    words = [int.from_bytes(data[i : i + 2], "little") for i in range(0, len(data), 2)]
    following, out = tables.next_states(bits), []
    x, words = words[0] | words[1] << 16, words[2:]
    if x < _LOW:
        raise BadFileError("a block of trellis data begins in a state that no coder leaves")

    def take(start: int, freq: int) -> None:
        nonlocal x
        x = freq * (x // 4096) + x % 4096 - start
        if x < _LOW:
            if not words:
                raise BadFileError("a block of trellis data is cut short")
            x = x << 16 | words.pop(0)

    for number, (cls, count) in enumerate(zip(classes, counts, strict=True)):
        state = state if number == 0 else 0
        freq = tables.frequencies(cls).astype(int)
        starts = np.cumsum(freq, axis=1) - freq
        low = tables.shift(cls)
        for _ in range(count):
            q = state & 1
            symbol = int(np.searchsorted(starts[q] + freq[q], x % 4096, "right"))
            take(int(starts[q, symbol]), int(freq[q, symbol]))
            k = 0 if symbol == tables.ESCAPE else symbol - tables.HALF
            for width in [8, 8] if symbol == tables.ESCAPE else [low] if low else []:
                raw = x % 4096 >> (12 - width)
                take(raw << (12 - width), 1 << (12 - width))
                k = k << width | raw
            if symbol == tables.ESCAPE and k >= 1 << 15:
                k -= 1 << 16
            out.append(level(q, k))
            state = int(following[state, k & 1])
    if x != _LOW or words:
        raise BadFileError("a block of trellis data does not end where it should")
    return out
