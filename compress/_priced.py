"""Families of codings whose dial is the price of a bit: what rank vectors are worth at it, they get."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

from paring.coding import Coded, Item

#: (module, price of a bit) -> the module's tensors, coded
Fit = Callable[[int, float], Sequence[tuple[str, Item]]]

STEPS_PER_OCTAVE = 16


def price(top: float, step: int) -> float:
    """The price of a bit at a step below ``top``."""
    return float(top * 2.0 ** (-step / STEPS_PER_OCTAVE))


class Priced:
    """The dial lowers the price of a bit from ``top`` on, by sixteenths of an octave, a module at a time.

    A dial is a step of the price and how many modules have taken the next. So one dial differs from the next
    in one module, and budgets are met closely although a rank vector comes or goes whole. A price is in
    squared Frobenius norm a bit.
    """

    turns: tuple[int, ...] = ()
    fixed: int | None = None

    def __init__(self, modules: int, fit: Fit, top: float, octaves: int, scan: int, threads: int) -> None:
        self.modules, self._top, self._threads = modules, top, threads
        self.dials = octaves * STEPS_PER_OCTAVE * modules
        self.scan = scan
        # neighbouring dials share all fits but one
        self._fit = lru_cache(maxsize=4 * modules)(lambda index, step: fit(index, self.price(step)))

    def price(self, step: int) -> float:
        """The price of a bit at a step."""
        return price(self._top, step)

    def steps(self, dial: int) -> list[int]:
        """The step of each module at ``dial``."""
        step, ahead = divmod(dial, max(1, self.modules))
        return [step + (index < ahead) for index in range(self.modules)]

    def encode(self, dial: int) -> Coded:
        with ThreadPoolExecutor(self._threads) as pool:
            found = pool.map(lambda job: self._fit(*job), enumerate(self.steps(dial)))
            return Coded({name: item for pairs in found for name, item in pairs})
