"""What a bit buys on the trellis, and how a module's rank vectors share them.

``PLAN`` holds, row by row, what Gaussian values of unit variance cost and keep when they are quantised at one
price of a bit. A component ``s u v`` of an update, u ``(out,)`` and v ``(in,)``, loses
``s^2 (1 - (1 - D_u)(1 - D_v))`` and costs ``out R_u + in R_v`` bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]

#: price of a bit (squared error a bit), step of the levels, class, bits a value, distortion; measured by
#: ``benchmarks/trellis.py`` with 128 states. Prices fall by a third of an octave from row to row.
_MEASURED = (
    (0.692957, 1.3000, 4, 0.6846, 0.434632),
    (0.55, 1.3000, 3, 0.7757, 0.376496),
    (0.436535, 1.1000, 6, 0.9067, 0.314415),
    (0.346478, 1.0000, 8, 1.0894, 0.242985),
    (0.275, 0.8993, 9, 1.2471, 0.194624),
    (0.218268, 0.8012, 10, 1.4116, 0.154471),
    (0.173239, 0.7138, 11, 1.5793, 0.122318),
    (0.1375, 0.6359, 12, 1.7466, 0.096893),
    (0.109134, 0.5666, 13, 1.9138, 0.0766291),
    (0.0866196, 0.5270, 14, 2.0390, 0.0641395),
    (0.06875, 0.4696, 15, 2.2025, 0.0510488),
    (0.0545669, 0.4006, 16, 2.4132, 0.038172),
    (0.0433098, 0.3569, 18, 2.5861, 0.0299257),
)
_ROWS = 42  # to 7.5 bits a value


def _plan() -> npt.NDArray[np.float64]:
    """(rows, 5): the measured rows, then what follows from them: D in proportion to the price."""
    rows = [*_MEASURED]
    for row in range(len(rows), _ROWS):
        price = rows[12][0] * 2.0 ** (-(row - 12) / 3)
        bits = rows[12][3] + (row - 12) / 6 * (1 - 0.012)
        rows.append((price, 1.715 * price**0.5, min(48, 18 + row - 12), bits, 0.70 * price))
    return np.array(rows)


PLAN = _plan()

#: bits beside the entries that a component takes: two classes, a scale
SIDE_BITS = 16.0
_FINE = 16  # entries of a table an octave
_OCTAVES = 72


@dataclass(frozen=True, eq=False)
class Worth:
    """What a component is given, by ``log2(s^2 / price)`` in sixteenths, (t,) each: rows of ``PLAN`` for u
    and v, -1 for none; its bits; and the share of its energy that is lost.
    """

    of_u: npt.NDArray[np.int64]
    of_v: npt.NDArray[np.int64]
    bits: F64
    lost: F64

    def at(self, squares: F64, price: float) -> npt.NDArray[np.int64]:
        """Where in the tables components of these squared singular values (c,) are at ``price``, (c,)."""
        with np.errstate(divide="ignore"):
            places = np.round(_FINE * np.log2(squares / price))
        found: npt.NDArray[np.int64] = np.clip(places, 0, _FINE * _OCTAVES - 1).astype(np.int64)
        return found


@lru_cache(maxsize=64)
def worth(n_out: int, n_in: int) -> Worth:
    """The tables for components of ``n_out`` and ``n_in`` entries; ``n_out`` 0 for (IA)^3 vectors, that have
    one side alone.
    """
    bits, kept = PLAN[:, 3], 1 - PLAN[:, 4]
    kept_u = kept if n_out else np.ones(len(kept))
    cost = (n_out * bits[:, None] + n_in * bits[None] + SIDE_BITS).reshape(-1)
    loss = (1 - kept_u[:, None] * kept[None]).reshape(-1)
    # the lower hull of (cost, loss): the only pairs that any price chooses
    order = np.lexsort((loss, cost))
    hull: list[int] = []
    for i in order:
        while hull and loss[i] <= loss[hull[-1]] and _above(hull, i, cost, loss):
            hull.pop()
        if not hull or loss[i] < loss[hull[-1]]:
            hull.append(int(i))
    chosen = np.array(hull)
    value = 2.0 ** (np.arange(_FINE * _OCTAVES) / _FINE)  # s^2 over the price of a bit
    totals = value[:, None] * loss[chosen] + cost[chosen]
    best = totals.argmin(axis=1)
    none = totals[np.arange(len(value)), best] >= value
    pick = chosen[best]
    return Worth(
        np.where(none, -1, pick // len(PLAN)),
        np.where(none, -1, pick % len(PLAN)),
        np.where(none, 0.0, cost[pick]),
        np.where(none, 1.0, loss[pick]),
    )


def _above(hull: list[int], i: int, cost: F64, loss: F64) -> bool:
    """Whether the last point of ``hull`` lies on or above the line from the one before it (or from nothing
    at all: cost 0, loss 1) to ``i``.
    """
    c0, l0 = (cost[hull[-2]], loss[hull[-2]]) if len(hull) > 1 else (0.0, 1.0)
    c1, l1 = cost[hull[-1]], loss[hull[-1]]
    return bool((l1 - l0) * (cost[i] - c0) >= (loss[i] - l0) * (c1 - c0))
