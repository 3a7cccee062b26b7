"""Budgets: how small, or how near. Stated in one of three ways, solved on a family's dial.

A size budget wants the least loss that fits; a loss budget wants the smallest size that is good enough. Sizes
are those of the whole file, found by encoding it; losses are measured on the values that a reader decodes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction

from paring.errors import BudgetError, OptionError


@dataclass(frozen=True, slots=True)
class Budget:
    """One of ``ratio`` (source bytes as stored over packed bytes), ``error`` (relative), ``bits_per_param``.

    None of them means ``ratio_fp16`` 16.
    """

    ratio: float | None = None
    error: float | None = None
    bits_per_param: float | None = None

    def __post_init__(self) -> None:
        given = {name: value for name, value in self.recipe().items() if value is not None}
        if len(given) > 1:
            flags = " and ".join("--" + name.replace("_", "-") for name in given)
            raise OptionError(f"{flags} state the budget in different ways: give one of them")
        for name, value in given.items():
            flag = "--" + name.replace("_", "-")
            if not 0 < value < float("inf"):
                raise OptionError(f"{flag} {value:g}: must be a positive number")
            if name == "error" and value >= 1:
                raise OptionError(
                    f"--error {value:g}: a relative error lies between 0 and 1 (1 loses everything)"
                )

    def recipe(self) -> dict[str, float | None]:
        """The three fields by name."""
        return {"ratio": self.ratio, "error": self.error, "bits_per_param": self.bits_per_param}

    def most_bytes(self, source_bytes: int, elements: int) -> int | None:
        """The largest file, in bytes, that meets a size budget; None when the budget is an error.

        Counted with the decimals that were typed, not with their binary neighbours.
        """
        if self.error is not None:
            return None
        if self.ratio is not None:
            return int(source_bytes / Fraction(str(self.ratio)))
        return int(elements * Fraction(str(self.bits_per_param or 1)) / 8)

    def __str__(self) -> str:
        for name, value in self.recipe().items():
            if value is not None:
                return f"--{name.replace('_', '-')} {value:g}"
        return "the default budget (16 times smaller than fp16)"


@dataclass(frozen=True, slots=True)
class Trial:
    """One dial tried: the bytes of the whole file and the total relative error."""

    dial: int
    nbytes: int
    error: float


@dataclass(frozen=True, slots=True)
class Dials:
    """The dials ``0 .. count - 1`` of a family, and how to try one.

    Size grows with the dial and loss falls, but neither quite: beyond the first dial that is too large, up to
    ``scan`` more are tried.
    """

    trial: Callable[[int], Trial]
    count: int
    scan: int = 0

    def for_size(self, most_bytes: int) -> Trial | None:
        """The trial of least error within ``most_bytes``; None when even the lowest dial is larger."""
        top = self._largest(lambda tried: math.log(tried.nbytes), math.log(max(1, most_bytes)))
        if top is None:
            return None
        # a dial below the top may still be too large
        found = [top, self._least_loss(top.dial), *self._beyond(top.dial + 1)]
        return min((tried for tried in found if tried.nbytes <= most_bytes), key=lambda tried: tried.error)

    def for_error(self, error: float) -> Trial | None:
        """The smallest trial with at most ``error``; None when no dial is good enough."""
        worse = self._largest(lambda tried: -tried.error, math.nextafter(-error, -math.inf))
        first = worse.dial + 1 if worse else 0
        good = [tried for tried in self._beyond(first) if tried.error <= error]
        if not good:  # loss rises again towards the end: its minimum may still be good enough
            good = [tried for tried in (self.least_error(),) if tried.error <= error]
        return min(good, key=lambda tried: tried.nbytes, default=None)

    def least_error(self) -> Trial:
        """The trial of least error, whatever its size."""
        return self._least_loss(self.count - 1)

    def _beyond(self, first: int) -> Iterator[Trial]:
        """``first`` and up to ``scan`` more dials, while they stay within two per cent of its size."""
        for dial in range(first, min(first + 1 + self.scan, self.count)):
            tried = self.trial(dial)
            if tried.nbytes > 1.02 * self.trial(first).nbytes:
                return
            yield tried

    def _largest(self, value: Callable[[Trial], float], limit: float) -> Trial | None:
        """The trial of the largest dial with a ``value`` within ``limit``; values are taken to rise.

        Low dials are the cheap ones to try: a climb in tenths, then interpolation and bisection in turn.
        """
        if value(self.trial(0)) > limit:
            return None
        low, high, stride = 0, self.count, max(1, self.count // 10)
        while low + stride < self.count:
            if value(self.trial(low + stride)) > limit:
                high = low + stride
                break
            low += stride
        bisect = False
        while high - low > 1:
            share = 0.5
            if high < self.count and not bisect:
                at_low, at_high = value(self.trial(low)), value(self.trial(high))
                share = (limit - at_low) / (at_high - at_low)
                share += 0.01 if share < 0.5 else -0.01  # past the goal, so that the far end comes near too
            middle = min(max(low + round(share * (high - low)), low + 1), high - 1)
            before = high - low
            low, high = (middle, high) if value(self.trial(middle)) <= limit else (low, middle)
            bisect = high - low > before // 2
        return self.trial(low)

    def _least_loss(self, top: int) -> Trial:
        """The trial of least error up to dial ``top``: that one, unless error has begun to rise there."""
        if self.trial(top).error <= self.trial(max(0, top - max(1, top // 64))).error:
            return self.trial(top)
        low, high = 0, top
        while high - low > max(2, top // 256):  # the minimum is flat
            a, b = low + (high - low) // 3, high - (high - low) // 3
            low, high = (low, b) if self.trial(a).error <= self.trial(b).error else (a, high)
        return min(
            (self.trial(dial) for dial in (low, (low + high) // 2, high, top)), key=lambda tried: tried.error
        )


def refuse(budget: Budget, best: Trial, source_bytes: int, elements: int, blocked: str) -> BudgetError:
    """The error that says why ``budget`` cannot be met and what can; ``blocked`` names what is in the way."""
    # rounded to the side on which it can be had
    can = {
        "ratio": f"--ratio {source_bytes * 100 // best.nbytes / 100:.12g}",
        "error": f"--error {math.ceil(Fraction(best.error) * 10_000) / 10_000:.12g}",
        "bits_per_param": f"--bits-per-param {-(-80_000 * best.nbytes // elements) / 10_000:.12g}",
    }
    kind = next((name for name, value in budget.recipe().items() if value is not None), "bits_per_param")
    return BudgetError(f"{budget} cannot be met{blocked}; the best that can be had is {can[kind]}")
