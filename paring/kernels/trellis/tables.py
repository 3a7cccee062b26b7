"""The trellis and the models of its coder, in whole numbers that every machine agrees on.

``docs/format.md`` (codec ``trellis``) is the specification. A *class* is a model: it says how fast levels
grow rare away from zero, ``RHO`` is the ratio of the first step. Classes are 1 to 48 (0 stands for a segment
of zeros); they suit Gaussian values at .2 to 8 bits each.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

#: frequencies of a model sum to 4096
TOTAL_BITS = 12
TOTAL = 1 << TOTAL_BITS
#: symbols stand for y = k >> shift in [-16, 16); the last one is the escape, followed by all 16 bits of k
HALF = 16
ESCAPE = 2 * HALF
ESCAPE_BITS = 16
MOST_K = 32_767

#: log2(states) -> parity checks h1, h0 of a convolutional code (Ungerboeck 1982, table I)
CHECKS = {
    2: (0o2, 0o5),
    3: (0o4, 0o13),
    4: (0o4, 0o23),
    5: (0o10, 0o45),
    6: (0o24, 0o103),
    7: (0o126, 0o235),
    8: (0o362, 0o515),
}

#: class j's ratio times 2^24: exp(-3 2^(-(j - 1) / 3)), so that three classes halve the price of a bit
RHO = (
    835288, 1551032, 2534865, 3743503, 5101175, 6521347, 7924996, 9251136, 10459926, 11530801, 12458263,
    13247205, 13908801, 14457350, 14908092, 15275829, 15574148, 15815065, 16008931, 16164493, 16289038,
    16388572, 16468005, 16531325, 16581756, 16621892, 16653817, 16679199, 16699373, 16715403, 16728136,
    16738249, 16746281, 16752658, 16757721, 16761741, 16764932, 16767466, 16769477, 16771073, 16772340,
    16773346, 16774144, 16774778, 16775281, 16775680, 16775997, 16776248,
)  # fmt: skip
CLASSES = len(RHO)
_ONE = 48  # bits of the fixed-point weights


def shift(cls: int) -> int:
    """How many low bits of k a class leaves uncoded."""
    return max(0, (cls - 22) // 6)


def next_states(bits: int) -> npt.NDArray[np.int64]:
    """(states, 2): where the trellis of ``2^bits`` states goes from each state, by the parity of k.

    The quantiser that a state uses is its lowest bit.
    """
    h1, h0 = (check >> 1 for check in CHECKS[bits])
    state = np.arange(1 << bits)
    stay = (state >> 1) ^ (state & 1) * h0
    return np.stack([stay, stay ^ h1], axis=1)


def _weights(cls: int) -> tuple[list[int], list[int]]:
    """Weights of the levels 0, 1, 2 ...: 2^48 ratio^(l^2) in fixed point, and of k = 0 in both quantisers."""
    ratio = RHO[cls - 1] << (_ONE - 24)
    square = ratio * ratio >> _ONE
    out = [1 << _ONE]
    while out[-1] >> 8 and len(out) < 2 * (MOST_K + 1):
        out.append(out[-1] * ratio >> _ONE)
        ratio = ratio * square >> _ONE
    return out, [1 << _ONE, 1 << (_ONE - 3)]


@cache
def frequencies(cls: int) -> npt.NDArray[np.uint16]:
    """(2, 33): the frequency of each symbol of class ``cls`` in both quantisers, the escape last."""
    levels, zeros = _weights(cls)
    low = shift(cls)
    out = np.zeros((2, ESCAPE + 1), np.uint16)
    for q in (0, 1):
        by_symbol = [0] * (ESCAPE + 1)
        for level in range(2 - q, len(levels), 2):
            k = (level + q) >> 1
            for signed in (k, -k):
                y = signed >> low
                by_symbol[y + HALF if -HALF <= y < HALF else ESCAPE] += levels[level]
        by_symbol[HALF] += zeros[q]
        out[q] = _share(by_symbol)
    return out


def _share(weights: list[int]) -> list[int]:
    """Frequencies that sum to TOTAL: symbols rarer than 1 in 2 TOTAL are left to the escape."""
    whole = sum(weights)
    kept = [weight if 2 * TOTAL * weight >= whole else 0 for weight in weights[:-1]]
    kept.append(whole - sum(kept))
    out = [max(1, TOTAL * weight // whole) if weight else 0 for weight in kept[:-1]]
    out.append(max(1, TOTAL * kept[-1] // whole))
    out[out.index(max(out))] += TOTAL - sum(out)
    return out


@cache
def coding_tables() -> tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]:
    """Frequencies and starts (classes + 1, 2, 33), uint16, and shifts (classes + 1,), uint8."""
    freq = np.zeros((CLASSES + 1, 2, ESCAPE + 1), np.uint16)
    for cls in range(1, CLASSES + 1):
        freq[cls] = frequencies(cls)
    start = (np.cumsum(freq, axis=2) - freq).astype(np.uint16)
    shifts = np.array([0, *map(shift, range(1, CLASSES + 1))], np.uint8)
    return freq, start, shifts


@cache
def slots() -> npt.NDArray[np.uint8]:
    """Which symbol each of the 4096 slots belongs to, (classes + 1, 2, 4096), uint8."""
    table = np.zeros((CLASSES + 1, 2, TOTAL), np.uint8)
    for cls in range(1, CLASSES + 1):
        for q in (0, 1):
            table[cls, q] = np.repeat(np.arange(ESCAPE + 1, dtype=np.uint8), frequencies(cls)[q])
    return table


@cache
def rates(cls: int) -> npt.NDArray[np.float64]:
    """(2, 2 span + 1), span = 16 * 2^shift: the bits that k takes, by quantiser and ``k + span``. Both ends
    are escapes.
    """
    freq = frequencies(cls).astype(np.float64)
    with np.errstate(divide="ignore"):
        bits = np.where(freq > 0, TOTAL_BITS - np.log2(freq), np.inf)
    escape = bits[:, ESCAPE] + ESCAPE_BITS
    low = shift(cls)
    bits = np.minimum(bits + low, escape[:, None])
    out = np.empty((2, 2 * (HALF << low) + 1))
    out[:, :-1] = np.repeat(bits[:, :ESCAPE], 1 << low, axis=1)
    out[:, -1] = out[:, 0] = escape
    return out
