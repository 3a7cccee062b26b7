"""How much each matrix keeps: pure functions from shapes (and for LAMP, scores) to exact counts.

All of them give ``{name: entries kept}`` and keep exactly ``n - floor(sparsity n)`` of the ``n`` entries in
all, except ``uniform``, which as published rounds in each matrix.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from paring.errors import OptionError
from paring.pruning import sparsity as counting

Allocator = Literal["uniform", "erk", "lamp", "owl"]
#: those that look at weights, so that budgets are known when the work begins
BY_DATA = ("lamp", "owl")
Shapes = Mapping[str, tuple[int, int]]
F32 = npt.NDArray[np.float32]


def named(name: str) -> str:
    """An allocator's name. Raises OptionError for what is none."""
    if name not in get_args(Allocator):
        raise OptionError(f"--allocate {name}: expected {', '.join(get_args(Allocator))}")
    return name


def uniform(shapes: Shapes, sparsity: Fraction) -> dict[str, int]:
    """The same share of every matrix ``(out, in)``: the floor of it is pruned."""
    sizes = {name: out * inn for name, (out, inn) in shapes.items()}
    return {name: n - counting.pruned(sparsity, n) for name, n in sizes.items()}


def erk(shapes: Shapes, sparsity: Fraction, power: float = 1.0) -> dict[str, int]:
    """Erdős-Rényi-kernel (Evci et al., RigL, arXiv:1911.11134, section 3): the density of a matrix is
    ``eps ((out + in) / (out in)) ** power``, at most 1.

    ``eps`` is solved so that all of them together have the density asked for. Where the largest would exceed
    1, those that are as large are kept whole and the rest is solved again.
    """
    keep = _kept(shapes, sparsity)
    sizes = {name: out * inn for name, (out, inn) in shapes.items()}
    raw = {name: ((out + inn) / (out * inn)) ** power for name, (out, inn) in shapes.items()}
    dense: set[str] = set()
    eps = 0.0
    while len(dense) < len(shapes):
        sparse = [name for name in shapes if name not in dense]
        rest = keep - sum(sizes[name] for name in dense)
        eps = rest / sum(raw[name] * sizes[name] for name in sparse)
        largest = max(raw[name] for name in sparse)
        if eps * largest <= 1:
            break
        dense |= {name for name in sparse if raw[name] == largest}
    shares = [sizes[name] * (1.0 if name in dense else eps * raw[name]) for name in shapes]
    return dict(zip(shapes, counting.rounded(shares, keep, list(sizes.values())), strict=True))


def shared(densities: Mapping[str, float], shapes: Shapes, sparsity: Fraction) -> dict[str, int]:
    """Counts from any densities in [0, 1] whose mean, weighted by entries, is about what is asked for."""
    sizes = [out * inn for out, inn in shapes.values()]
    shares = [densities[name] * n for name, n in zip(shapes, sizes, strict=True)]
    return dict(zip(shapes, counting.rounded(shares, _kept(shapes, sparsity), sizes), strict=True))


def lamp(values: F32) -> F32:
    """LAMP scores (Lee et al., arXiv:2010.07611, definition 1) of scores or magnitudes ``values (n,)``:
    ``v_i^2 / sum of v_j^2 over all j with v_j >= v_i``; sums in fp64, rounded to fp32.

    The largest has 1 (or 1 over the number of its equals), so no matrix is emptied. One threshold over all
    matrices then says how many each keeps.
    """
    bits = np.abs(np.ascontiguousarray(values, np.float32)).view(np.uint32)
    if not (bits & 0x1FFF).any():  # 16-bit floats have few magnitudes: a table tells all of them
        back, times = bits >> 13, np.bincount(bits >> 13)
        size = (np.arange(len(times), dtype=np.uint32) << 13).view(np.float32)
    else:
        distinct, back, times = np.unique(bits, return_inverse=True, return_counts=True)
        size = distinct.view(np.float32)
    squares = np.where(times > 0, size, 0).astype(np.float64) ** 2
    tail = np.cumsum((squares * times)[::-1])[::-1]
    table = np.divide(squares, tail, out=np.zeros_like(squares), where=tail > 0).astype(np.float32)
    found: F32 = table[back]
    return found


def _kept(shapes: Shapes, sparsity: Fraction) -> int:
    n = sum(out * inn for out, inn in shapes.values())
    return n - counting.pruned(sparsity, n)
