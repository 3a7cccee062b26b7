"""Budgets: how small, or how near. Stated in one of three ways, solved on a family's dial.

A size budget wants the least loss that fits; a loss budget wants the smallest size that is good enough. Sizes
are those of the whole file, found by encoding it; losses are measured on the values that a reader decodes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import pairwise
from typing import TYPE_CHECKING

from paring.errors import BudgetError, OptionError

if TYPE_CHECKING:
    from paring.coding import Family

#: nearly the bytes and the error of a dial, or None for an error that only a trial tells
Sketch = Callable[[int], "tuple[float, float | None]"]

#: how good a trial is, first things first; less is better
Rank = tuple[bool, float, float]


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

    Size rises along the dial up to the first of ``turns``, falls up to the second, and so on. These stretches
    are searched one by one, each from its small end, where loss is expected to fall as size rises. Neither
    does so strictly: ``scan`` is how many dials apart two may stand in the wrong order.

    What is found meets its budget by measure, and is the best of all trials made. Further:

    - Up to ``4 * scan`` dials all are tried: the best there is, and None only where no dial meets the budget.
    - With more dials, the same holds if no two dials further apart than ``scan`` along a stretch are in the
      wrong order, in size or in loss.
    - Where loss rises again along a stretch, its minimum is sought on a grid refined to 1/256 of the stretch
      and then ``scan`` dials about the best. A narrower or a second valley of loss may be missed.

    Trials are few (some ten a stretch, then a bisection) but for the ``2 scan`` about a find: ``scan`` is 0
    where trials cost seconds. With a ``sketch``, which nearly tells bytes and error of a dial for nothing,
    they are fewer: it is searched instead, and what it is wrong by is learnt from trial to trial.
    """

    trial: Callable[[int], Trial]
    count: int
    scan: int = 0
    turns: tuple[int, ...] = ()
    sketch: Sketch | None = None
    _seen: dict[int, Trial] = field(default_factory=dict, init=False, repr=False, compare=False)

    @classmethod
    def of(cls, trial: Callable[[int], Trial], family: Family) -> Dials:
        """The dials of ``family``, which ``trial`` tries."""
        return cls(trial, family.dials, family.scan, family.turns, getattr(family, "sketch", None))

    def for_size(self, most_bytes: int) -> Trial | None:
        """The trial of least error within ``most_bytes``; None when none that was tried is so small."""

        def rank(tried: Trial) -> Rank:
            fits = tried.nbytes <= most_bytes
            return not fits, tried.error if fits else tried.nbytes, tried.nbytes

        def search(stretch: range) -> None:
            if self.sketch:
                self._follow(stretch, self.sketch, lambda size, _: size, most_bytes)
                return
            top = self._last(stretch, lambda tried: math.log(tried.nbytes), math.log(max(1, most_bytes)))
            if top >= 0 and not self._falling(stretch, top):
                self._least_loss(stretch[: top + 1])
            self._try_about(stretch, top)

        best = self._best(rank, search)
        return best if best.nbytes <= most_bytes else None

    def for_error(self, error: float) -> Trial | None:
        """The smallest trial with at most ``error``; None when none that was tried is good enough."""

        def rank(tried: Trial) -> Rank:
            good = tried.error <= error
            return not good, tried.nbytes if good else tried.error, tried.error

        def search(stretch: range) -> None:
            if self.sketch and self.sketch(0)[1] is not None:
                limit = math.nextafter(-error, -math.inf)
                self._follow(stretch, self.sketch, lambda _, lost: -(lost or 0.0), limit)
                return
            best = min(self._seen.values(), key=rank, default=None)
            if best and best.error <= error and best.nbytes <= self._try(stretch[0]).nbytes:
                self._try_about(stretch, -1)  # nothing on this stretch is smaller, but for bumps
                return
            beyond = math.nextafter(-error, -math.inf)
            worse = self._last(stretch, lambda tried: -tried.error, beyond)
            if worse == len(stretch) - 1:  # loss rises again towards the end
                down = stretch[: self._least_loss(stretch) + 1]
                worse = self._last(down, lambda tried: -tried.error, beyond)
            self._try_about(stretch, worse)

        best = self._best(rank, search)
        return best if best.error <= error else None

    def least_error(self) -> Trial:
        """The trial of least error, whatever its size."""
        if self.sketch and self.sketch(0)[1] is not None:
            return self._try(self.count - 1)
        return self._best(lambda tried: (False, tried.error, tried.nbytes), self._least_loss)

    def _try(self, dial: int) -> Trial:
        if dial not in self._seen:
            self._seen[dial] = self.trial(dial)
        return self._seen[dial]

    def _best(self, rank: Callable[[Trial], Rank], search: Callable[[range], object]) -> Trial:
        """The first by ``rank`` of all trials ever made, after ``search`` on every stretch."""
        if self.count <= 4 * self.scan:
            for dial in range(self.count):
                self._try(dial)
        else:
            ends = [0, *self.turns, self.count]
            for index, (a, b) in enumerate(pairwise(ends)):
                if a < b:
                    search(range(b - 1, a - 1, -1) if index % 2 else range(a, b))
        while True:
            best = min(self._seen.values(), key=rank)
            self._try_about(range(self.count), best.dial)
            if best == min(self._seen.values(), key=rank):
                return best

    def _try_about(self, stretch: range, index: int) -> None:
        """``scan`` dials on either side of ``index`` and the one after it."""
        for dial in stretch[max(0, index - self.scan) : index + self.scan + 2]:
            self._try(dial)

    def _last(self, stretch: range, value: Callable[[Trial], float], limit: float) -> int:
        """The last index with a ``value`` within ``limit``, -1 for none; values are taken to rise.

        Small files are the cheap ones to try: a climb in tenths, then interpolation and bisection in turn.
        """

        def at(index: int) -> float:
            return value(self._try(stretch[index]))

        low, high = -1, len(stretch)
        for index in _tenths(high):
            if at(index) > limit:
                high = index
                break
            low = index
        bisect = False
        while high - low > 1:
            share = 0.5
            if not bisect:
                share = (limit - at(low)) / (at(high) - at(low))
                share += 0.01 if share < 0.5 else -0.01  # past the goal, so that the far end comes near too
            middle = min(max(low + round(share * (high - low)), low + 1), high - 1)
            before = high - low
            low, high = (middle, high) if at(middle) <= limit else (low, middle)
            bisect = high - low > before // 2
        return low

    def _follow(
        self, stretch: range, sketch: Sketch, value: Callable[[float, float | None], float], limit: float
    ) -> None:
        """Try dials near the last one with a ``value`` of (bytes, error) within ``limit``.

        Where values jump, as where entries tie, the sketch misleads: after two rounds that have not halved
        what is left the middle is tried.
        """
        low, high, wrong_by = -1, len(stretch), 0.0
        slow = 0
        while high - low > 1:
            left, right = low, high  # the last one by the sketch, as far as it is known to be wrong
            while right - left > 1:
                middle = (left + right) // 2
                fits = value(*sketch(stretch[middle])) + wrong_by <= limit
                left, right = (middle, right) if fits else (left, middle)
            at = min(max(left, low + 1), high - 1) if slow < 2 else (low + high) // 2
            before = high - low
            tried = self._try(stretch[at])
            found = value(tried.nbytes, tried.error)
            wrong_by = found - value(*sketch(stretch[at]))
            low, high = (at, high) if found <= limit else (low, at)
            slow = 0 if slow == 2 or high - low <= before // 2 else slow + 1
            if 0 <= limit - found <= abs(limit) * 1e-3:
                break  # close enough
        self._try_about(stretch, low)

    def _falling(self, stretch: range, top: int) -> bool:
        """Whether no trial further down the stretch loses less than that at ``top``."""
        below = max(0, top - max(1, top // 64))
        self._try(stretch[below])
        least = min(self._seen[dial].error for dial in stretch[: below + 1] if dial in self._seen)
        return self._seen[stretch[top]].error <= least

    def _least_loss(self, stretch: range) -> int:
        """The index of least error, on tenths and then ever finer about the best."""
        indices: Sequence[int] = _tenths(len(stretch))
        stride = max(1, len(stretch) // 10)
        while True:
            best = min(indices, key=lambda index: self._try(stretch[index]).error)
            if stride <= max(1, len(stretch) // 256):  # the minimum is flat
                return best
            reach, stride = stride, max(1, stride // 4)
            indices = range(max(0, best - reach), min(len(stretch), best + reach + 1), stride)


def _tenths(n: int) -> list[int]:
    """The indices 0 .. n - 1 in about ten steps, both ends among them."""
    return sorted({*range(0, n, max(1, n // 10)), n - 1})


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
