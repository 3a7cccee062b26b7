"""What several merging rules share."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import numpy as np

from paring.errors import OptionError
from paring.kernels import random
from paring.merging.models import F32, F64, Mix, Models, Place, Target


def check_density(density: float) -> None:
    """Raises OptionError for what is no share."""
    if not 0 < density <= 1:
        raise OptionError(f"--density {density}: a density is a fraction in (0, 1]")


def share_of(share: float, d: int) -> int:
    """How many of ``d`` a share is, of the decimal that was typed: .29 of 100 are 29."""
    return int(Fraction(str(share)) * d)


def refuse_unless_two(models: Models, rule: str) -> None:
    """Raises OptionError for any other number of models."""
    if models.n != 2:
        raise OptionError(f"{rule} merges two models, not {models.n}; karcher takes any number")


def shares(target: Target) -> F64:
    """The weights ``(models,)`` for one tensor over their sum. Raises OptionError when they sum to zero."""
    weights = np.array(target.weights)
    total = weights.sum()
    if abs(total) <= 1e-12 * np.abs(weights).sum():
        raise OptionError(f"the weights of {target.name} sum to zero, and this rule divides by their sum")
    out: F64 = weights / total
    return out


def by_angles(models: Models, coefficients: Callable[[F64, Target], F64]) -> Mix:
    """A mix whose ``coefficients (models,)`` follow from a tensor's inner products ``(models, models)``."""
    grams = models.gram() if models.numel else np.zeros((len(models.targets), models.n, models.n))
    found = {
        target.name: coefficients(gram, target) for target, gram in zip(models.targets, grams, strict=True)
    }
    return Mix(lambda target: found[target.name])


def draws(models: Models, seed: int) -> Callable[[Place, int], F32]:
    """Random numbers in [0, 1) for ``count`` entries from a place on, ``(models, count)``.

    A model's numbers depend on the seed, on its digest, on the tensor's name and on the entry: on neither
    the other models, nor threads, nor shards.
    """
    names = list(models.seeds) or [str(number) for number in range(models.n)]

    def drawn(place: Place, count: int) -> F32:
        keys = np.array([random.key(seed, name, place.target.name) for name in names], np.uint64)
        return random.uniform(keys, place.start, count)

    return drawn
