"""The trellis search and the coder behind it, in numba. The specification is ``reference.py``."""

from __future__ import annotations

from typing import Any

import numpy as np

from paring.kernels.jit import jit


@jit()
def _candidates(y: float, rate: Any, price: float, cost: Any, chosen: Any) -> None:
    """Of both quantisers and parities, at 2 q + parity: the k of least ``(y - level)^2 + price rate``.

    ``rate`` (2, 2 span + 1) is that of ``tables.rates``. The levels around y, zero and the first one of the
    other sign are tried: another one can only be better where a bit costs more than a level squared, and no
    such price is worth asking for.
    """
    a, sign = abs(y), 1 if y >= 0 else -1
    span = rate.shape[1] // 2
    for q in range(2):
        nearest = int((a + q) * 0.5)
        for parity in range(2):
            best, which = np.inf, 0
            k = nearest if (nearest & 1) == parity else nearest + 1
            for m in (k, k - 2, k + 2):
                if m >= 0:
                    level = 2 * m - (q if m > 0 else 0)
                    found = (a - level) ** 2 + price * rate[q, span + sign * min(m, span)]
                    if found < best:
                        best, which = found, m
            if parity == 0:
                found = a * a + price * rate[q, span]
                if found < best:
                    best, which = found, 0
            else:  # near zero the other sign is as near
                found = (a + 2 - q) ** 2 + price * rate[q, span - sign]
                if found < best:
                    best, which = found, -1
            cost[2 * q + parity] = best
            chosen[2 * q + parity] = which * sign


@jit(fastmath={"nnan", "nsz", "contract"})
def _step(even: Any, odd: Any, perm: Any, flip: Any, cost: Any, new: Any, back: Any) -> None:
    """One step of the search: costs of the states by what leads to them, and which of two that was."""
    c0, c1, c2, c3 = cost[0], cost[1], cost[2], cost[3]
    half = len(even)
    for t in range(half):
        a, b = even[t] + c0, even[perm[t]] + c1
        back[t] = b < a
        new[t] = min(a, b)
    for t in range(half):
        a, b = odd[flip[t]] + c2, odd[perm[flip[t]]] + c3
        back[half + t] = b < a
        new[half + t] = min(a, b)


@jit()
def quantise(x: Any, price: float, rate: Any, h1: int, h0: int, states: int, most: int, out: Any) -> None:
    """The levels of least ``sum (x - level)^2 + price * bits`` by the Viterbi algorithm, as k, int16.

    No k is larger than ``most``: values beyond 2 most - 2 are taken for that.
    """
    n, half = len(x), states // 2
    even, odd, new = np.full(half, np.inf), np.full(half, np.inf), np.empty(states)
    even[0] = 0.0
    perm, flip = np.empty(half, np.int64), np.empty(half, np.int64)
    for t in range(half):
        perm[t] = t ^ (h1 >> 1)
        flip[t] = (t + half) ^ (h0 >> 1)
    back = np.empty((n, states), np.bool_)
    chosen = np.empty((n, 4), np.int64)
    cost, bound = np.empty(4), 2.0 * most - 2.0  # what is above may be nearest to most + 1
    for i in range(n):
        _candidates(min(max(x[i], -bound), bound), rate, price, cost, chosen[i])
        _step(even, odd, perm, flip, cost, new, back[i])
        for j in range(half):
            even[j], odd[j] = new[2 * j], new[2 * j + 1]
    state = 0
    for s in range(states):
        if new[s] < new[state]:
            state = s
    for i in range(n - 1, -1, -1):
        second = int(back[i, state])
        q = 1 if state >= half else 0
        j = (state ^ (h0 >> 1)) if q else state
        if second:
            j ^= h1 >> 1
        out[i] = chosen[i, 2 * q + second]
        state = 2 * j + q


@jit()
def levels(k: Any, following: Any, out: Any) -> None:
    """The levels (n,), int32, that the symbols ``k`` (n,) of one segment stand for."""
    state = 0
    for i in range(len(k)):
        level = 2 * np.int64(k[i])
        if state & 1:
            level -= int(level > 0) - int(level < 0)
        out[i] = level
        state = following[state, np.int64(k[i]) & 1]


@jit()
def count(k: Any, following: Any, most: int, out: Any) -> None:
    """How often each k occurs in each quantiser: adds to ``out`` (2, 2 most + 1), clipped to ``most``."""
    state = 0
    for i in range(len(k)):
        value: Any = np.int64(k[i])
        out[state & 1, min(max(value, -most), most) + most] += 1
        state = following[state, value & 1]
