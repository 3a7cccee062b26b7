"""OWL (Yin et al., arXiv:2310.05175): blocks with more outliers keep more.

Of a block (a layer of the model with all its matrices) the *outlier share* D is that of scores |W| ||X||
above M times their mean. Densities follow D: scaled to 0 .. 1 over the blocks, times 2 lambda, moved so that
their mean is what is asked for. Here that mean weighs blocks by their parameters (published: all alike, so
that blocks of unequal size miss the total), densities stay in 0 .. 1, counts are exact, and blocks that are
all alike get the same.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from paring.errors import OptionError
from paring.pruning import sparsity as counting
from paring.pruning.matrix import F32, F64


def total(weights: F32, norms: F32) -> float:
    """The sum of the scores ``|W| * norms`` of ``weights (out, in)``, ``norms (in,)``, in fp64."""
    return float((np.abs(weights).sum(axis=0, dtype=np.float64) * norms).sum())


def outliers(weights: F32, norms: F32, above: float) -> int:
    """How many of the scores of ``weights (out, in)``, inputs' ``norms (in,)``, are larger than ``above``."""
    return int((np.abs(weights) * norms.astype(np.float64) > above).sum())


def share_out(shares: Sequence[float], sizes: Sequence[int], sparsity: Fraction, spread: float) -> list[int]:
    """How many entries each block keeps: ``sum(sizes) - floor(sparsity * sum(sizes))`` in all.

    ``shares`` are the outlier shares, ``sizes`` the entries of the blocks, ``spread`` is lambda: densities
    lie within that of their mean, or nearer where a block is full or empty.
    """
    keep = sum(sizes) - counting.pruned(sparsity, sum(sizes))
    found = np.asarray(shares, np.float64)
    width = found.max() - found.min() if len(found) else 0.0
    wanted = (found - found.min()) / width * 2 * spread if width > 0 else np.zeros_like(found)
    densities = _filled(wanted, np.asarray(sizes, np.float64), keep)
    return counting.rounded([float(d) * n for d, n in zip(densities, sizes, strict=True)], keep, sizes)


def check(above: float, spread: float) -> None:
    """Refuse an M that is not positive, or a lambda outside [0, 1). Raises OptionError."""
    if not 0 < above < np.inf:
        raise OptionError(f"--outliers {above}: how many times the mean score an outlier is, above 0")
    if not 0 <= spread < 1:
        raise OptionError(f"--spread {spread}: how far densities may be from their mean, in [0, 1)")


def block_of(name: str) -> str:
    """The block that a tensor is in: its name up to the first number, itself where there is none."""
    found = re.match(r"(?:.*?\.)?\d+(?=\.)", name)
    return found[0] if found else name


def _filled(wanted: F64, sizes: F64, keep: int) -> F64:
    """``wanted`` moved by one amount, and cut to 0 .. 1, so that they keep ``keep`` of ``sizes`` in all.

    What is kept grows with the move, in straight lines between the moves at which a block becomes full or
    empty: the right line is looked up, then the place on it.
    """
    corners = np.unique(np.concatenate([-wanted, 1 - wanted]))
    kept = np.array([(sizes * np.clip(wanted + move, 0, 1)).sum() for move in corners])
    move = np.interp(keep, kept, corners)
    made: F64 = np.clip(wanted + move, 0.0, 1.0)
    return made
